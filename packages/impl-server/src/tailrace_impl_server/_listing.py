"""Finding resources."""

from __future__ import annotations

import base64
import binascii
import logging

from tailrace_common_api import (
    InvalidArgument,
    InvalidReference,
    ListFilter,
    Metadata,
    NotFound,
    Page,
    ResourceState,
    Status,
    StorageFailure,
    Visibility,
    check_id,
)
from tailrace_impl_server._live_resource import Bases, make_status
from tailrace_impl_server._registry import Registry
from tailrace_server_api import Catalog, CatalogEntry, Storage

logger = logging.getLogger(__name__)

_MOST_PAGE_BYTES = 512 * 1024
"""Most bytes of a page of a listing, but for its first entry: a control message holds 1 MiB."""
_LISTED_OVERHEAD = 2048
"""Bytes of a listed resource beside its metadata, at the most."""


class Listing:
    """Pages of resources: the catalog finds them, and the storage knows their state. Belongs to one event loop."""

    def __init__(
        self, catalog: Catalog, storage: Storage, registry: Registry, bases: Bases, max_page_size: int
    ) -> None:
        self._catalog = catalog
        self._storage = storage
        self._registry = registry
        self._bases = bases
        self._max_page_size = max_page_size

    async def page(self, filter: ListFilter, limit: int, page_token: str | None) -> Page:
        """Return a page of resources in order of creation.

        Raises:
            InvalidArgument: ``limit`` is below 1 or ``page_token`` is not one of this server.
        """
        if limit < 1:
            raise InvalidArgument(field="limit", problem=f"{limit} entries; at least 1 is needed")
        limit = min(limit, self._max_page_size)
        after = None if page_token is None else _parse_page_token(page_token)
        entries = await self._catalog.list(filter, after=after, limit=limit + 1)
        statuses = []
        taken = size = 0
        for entry in entries[:limit]:
            size += _listed_size(entry.descriptor.metadata)
            if taken and size > _MOST_PAGE_BYTES:
                break
            taken += 1
            status = await self._status(entry, filter)
            if status is not None:
                statuses.append(status)
        next_token = _make_page_token(entries[taken - 1].descriptor.id) if len(entries) > taken else None
        return Page(tuple(statuses), next_token)

    async def _status(self, entry: CatalogEntry, filter: ListFilter) -> Status | None:
        """Return the status of an entry; ``None`` when it does not belong into the listing after all."""
        descriptor = entry.descriptor
        live = self._registry.peek(descriptor.id)
        try:
            snapshot = live.snapshot if live is not None else await self._storage.load(descriptor.id)
        except NotFound:
            return None
        except StorageFailure:
            # One damaged resource must not hide the others; asking for it tells what is wrong with it.
            logger.warning("a resource cannot be listed", exc_info=True, extra={"resource": descriptor.id})
            return None
        if filter.state is not None and snapshot.state is not filter.state:
            return None
        if descriptor.visibility is Visibility.ATOMIC and snapshot.state is not ResourceState.COMPLETED:
            return None
        return live.status() if live is not None else make_status(descriptor, snapshot, self._bases.urls)


def _listed_size(metadata: Metadata) -> int:
    """Return about how many bytes a resource takes in a page, at the most: a character may be escaped to six."""
    texts = [metadata.name, metadata.content_type, metadata.context or "", *metadata.labels, *metadata.labels.values()]
    return _LISTED_OVERHEAD + 6 * sum(map(len, texts))


def _make_page_token(id: str) -> str:
    return base64.urlsafe_b64encode(id.encode("ascii")).decode("ascii").rstrip("=")


def _parse_page_token(token: str) -> str:
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        return check_id(base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii"))
    except (UnicodeError, binascii.Error, InvalidReference):
        raise InvalidArgument(field="page_token", problem="not one of this server") from None
