"""A context and its events, for programs and for people."""

from __future__ import annotations

from datetime import datetime

from tailrace._messages import printable
from tailrace_common_api import Context, ContextEvent


def context_fields(context: Context) -> dict[str, object]:
    """Return a context as the JSON object that the command line prints."""
    return {
        "id": context.id,
        "attributes": dict(context.attributes),
        "state": context.state.value,
        "created_at": context.created_at,
        "closed_at": context.closed_at,
        "resources": context.resources,
        "bytes": context.bytes,
        "last_event": context.last_event,
    }


def event_fields(event: ContextEvent) -> dict[str, object]:
    """Return an event as the JSON object that the command line prints."""
    return {
        "sequence": event.sequence,
        "at": event.at,
        "kind": event.kind.value,
        "id": event.id,
        "state": None if event.state is None else event.state.value,
        "size": event.size,
        "code": event.code,
        "message": event.message,
    }


def context_text(context: Context) -> str:
    """Return a context as a few lines for people."""
    rows = {
        "context": context.id,
        "state": context.state.value,
        "attributes": ", ".join(f"{key}={value}" for key, value in sorted(context.attributes.items())) or None,
        "resources": f"{context.resources:,}",
        "size": f"{context.bytes:,} bytes",
        "created": _moment(context.created_at),
        "closed": None if context.closed_at is None else _moment(context.closed_at),
    }
    return "\n".join(f"{name + ':':14}{printable(value)}" for name, value in rows.items() if value is not None)


def event_row(event: ContextEvent) -> str:
    """Return an event as one line for people."""
    parts = [
        _moment(event.at),
        f"{event.kind.value:<14}",
        event.id,
        None if event.state is None else event.state.value,
        None if event.size is None else f"{event.size:,} bytes",
        event.code,
        event.message,
    ]
    return "  ".join(printable(part) for part in parts if part is not None).rstrip()


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
