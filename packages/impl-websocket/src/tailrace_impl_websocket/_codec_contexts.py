"""The messages about contexts to JSON and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tailrace_common_api import ContextEventKind, ContextState, InvalidArgument
from tailrace_impl_common.messages import (
    ClientMessage,
    CloseContext,
    Context,
    ContextEvent,
    CreateContext,
    GetContext,
    ServerMessage,
    WatchContext,
)
from tailrace_impl_websocket._codec_values import read_state
from tailrace_impl_websocket._fields import Fields


def context_request_to_json(
    message: CreateContext | GetContext | CloseContext | WatchContext,
) -> tuple[str, dict[str, object]]:
    match message:
        case CreateContext():
            return "create_context", {"attributes": dict(message.attributes)}
        case GetContext():
            return "get_context", {"id": message.id}
        case CloseContext():
            return "close_context", {"id": message.id}
        case WatchContext():
            return "watch_context", {"id": message.id, "after": message.after}


CONTEXT_REQUEST_READERS: Mapping[str, Callable[[Fields], ClientMessage]] = {
    "create_context": lambda fields: CreateContext(attributes=fields.text_mapping("attributes")),
    "get_context": lambda fields: GetContext(id=fields.text("id")),
    "close_context": lambda fields: CloseContext(id=fields.text("id")),
    "watch_context": lambda fields: WatchContext(id=fields.text("id"), after=fields.optional_count("after") or 0),
}


def context_response_to_json(message: Context | ContextEvent) -> tuple[str, dict[str, object]]:
    match message:
        case Context():
            return "context", {
                "id": message.id,
                "attributes": dict(message.attributes),
                "state": message.state.value,
                "created_at": message.created_at,
                "closed_at": message.closed_at,
                "resources": message.resources,
                "bytes": message.bytes,
                "last_event": message.last_event,
            }
        case ContextEvent():
            return "context_event", {
                "sequence": message.sequence,
                "at": message.at,
                "kind": message.kind.value,
                "id": message.id,
                "state": None if message.state is None else message.state.value,
                "size": message.size,
                "code": message.code,
                "message": message.message,
            }


def _context(fields: Fields) -> Context:
    return Context(
        id=fields.text("id"),
        attributes=fields.text_mapping("attributes"),
        state=_context_state(fields.text("state")),
        created_at=fields.number("created_at"),
        closed_at=fields.optional_number("closed_at"),
        resources=fields.count("resources"),
        bytes=fields.count("bytes"),
        last_event=fields.count("last_event"),
    )


def _context_event(fields: Fields) -> ContextEvent:
    state = fields.optional_text("state")
    return ContextEvent(
        sequence=fields.count("sequence"),
        at=fields.number("at"),
        kind=_event_kind(fields.text("kind")),
        id=fields.optional_text("id"),
        state=None if state is None else read_state(state),
        size=fields.optional_count("size"),
        code=fields.optional_text("code"),
        message=fields.optional_text("message"),
    )


def _context_state(text: str) -> ContextState:
    try:
        return ContextState(text)
    except ValueError:
        raise InvalidArgument(field="state", problem=f"{text[:40]!a} is unknown") from None


def _event_kind(text: str) -> ContextEventKind:
    try:
        return ContextEventKind(text)
    except ValueError:
        raise InvalidArgument(field="kind", problem=f"{text[:40]!a} is unknown") from None


CONTEXT_RESPONSE_READERS: Mapping[str, Callable[[Fields], ServerMessage]] = {
    "context": _context,
    "context_event": _context_event,
}
