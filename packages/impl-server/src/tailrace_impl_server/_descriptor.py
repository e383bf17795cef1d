"""Descriptors of resources as JSON: what ``resource.json`` and the catalog hold."""

from __future__ import annotations

import json
from typing import Any

from tailrace_common_api import Metadata, StorageFailure, TailraceError, Visibility
from tailrace_server_api import Descriptor

_FORMAT_VERSION = 1


def descriptor_to_json(descriptor: Descriptor) -> str:
    """Return a descriptor as one line of JSON."""
    metadata = descriptor.metadata
    value = {
        "format": _FORMAT_VERSION,
        "id": descriptor.id,
        "name": metadata.name,
        "content_type": metadata.content_type,
        "lines": metadata.lines,
        "labels": dict(metadata.labels),
        "context": metadata.context,
        "visibility": descriptor.visibility.value,
        "created_at": descriptor.created_at,
        "token_hash": descriptor.token_hash.hex(),
        "principal": descriptor.principal,
        "idempotency_key": descriptor.idempotency_key,
        "length": descriptor.length,
        "sha256": None if descriptor.sha256 is None else descriptor.sha256.hex(),
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def descriptor_from_json(text: str | bytes) -> Descriptor:
    """Return the descriptor that :func:`descriptor_to_json` wrote.

    Raises:
        StorageFailure: The text is damaged, or of a format that is not understood.
    """
    try:
        value: dict[str, Any] = json.loads(text)
        if value["format"] != _FORMAT_VERSION:
            raise StorageFailure(
                f"a resource is described in format {value['format']!r}; {_FORMAT_VERSION} is understood"
            )
        return Descriptor(
            id=value["id"],
            metadata=Metadata(
                name=value["name"],
                content_type=value["content_type"],
                lines=value["lines"],
                labels=value["labels"],
                context=value["context"],
            ),
            visibility=Visibility(value["visibility"]),
            created_at=value["created_at"],
            token_hash=bytes.fromhex(value["token_hash"]),
            principal=value["principal"],
            idempotency_key=value["idempotency_key"],
            length=value["length"],
            sha256=None if value["sha256"] is None else bytes.fromhex(value["sha256"]),
        )
    except StorageFailure:
        raise
    except (ValueError, KeyError, TypeError, TailraceError) as error:
        raise StorageFailure(f"the description of a resource is damaged: {error}") from error
