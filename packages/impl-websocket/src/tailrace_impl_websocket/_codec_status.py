"""Watching, and everything that has one answer, to JSON and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tailrace_common_api import HEAD_SIZE, ListFilter, Page, Position, Status
from tailrace_impl_common.messages import (
    ClientMessage,
    Delete,
    Done,
    GetHeads,
    GetStatus,
    Heads,
    List,
    Listed,
    Locate,
    Located,
    ServerMessage,
    Watch,
    Watched,
)
from tailrace_impl_websocket._codec_values import optional_place, place, read_state, read_status, status_to_json
from tailrace_impl_websocket._fields import Fields


def status_request_to_json(
    message: Watch | GetStatus | GetHeads | Locate | List | Delete,
) -> tuple[str, dict[str, object]]:
    match message:
        case Watch():
            return "watch", {"id": message.id, "token": message.token}
        case GetStatus():
            return "get_status", {"id": message.id, "token": message.token}
        case GetHeads():
            return "get_heads", {"id": message.id, "token": message.token, "sizes": list(map(place, message.sizes))}
        case Locate():
            return "locate", {
                "id": message.id,
                "token": message.token,
                "line": optional_place(message.line),
                "offset": optional_place(message.offset),
            }
        case List():
            return "list", {
                "labels": dict(message.filter.labels),
                "context": message.filter.context,
                "state": None if message.filter.state is None else message.filter.state.value,
                "created_from": message.filter.created_from,
                "created_before": message.filter.created_before,
                "limit": place(message.limit),
                "page_token": message.page_token,
            }
        case Delete():
            return "delete", {"id": message.id, "token": message.token}


def _list_request(fields: Fields) -> List:
    state = fields.optional_text("state")
    return List(
        filter=ListFilter(
            labels=fields.text_mapping("labels"),
            context=fields.optional_text("context"),
            state=None if state is None else read_state(state),
            created_from=fields.optional_number("created_from"),
            created_before=fields.optional_number("created_before"),
        ),
        limit=fields.integer("limit"),
        page_token=fields.optional_text("page_token"),
    )


STATUS_REQUEST_READERS: Mapping[str, Callable[[Fields], ClientMessage]] = {
    "watch": lambda fields: Watch(id=fields.text("id"), token=fields.optional_text("token")),
    "get_status": lambda fields: GetStatus(id=fields.text("id"), token=fields.optional_text("token")),
    "get_heads": lambda fields: GetHeads(
        id=fields.text("id"), token=fields.optional_text("token"), sizes=fields.integers("sizes")
    ),
    "locate": lambda fields: Locate(
        id=fields.text("id"),
        token=fields.optional_text("token"),
        line=fields.optional_integer("line"),
        offset=fields.optional_integer("offset"),
    ),
    "list": _list_request,
    "delete": lambda fields: Delete(id=fields.text("id"), token=fields.optional_text("token")),
}


def status_response_to_json(
    message: Status | Watched | Heads | Located | Listed | Done,
) -> tuple[str, dict[str, object]]:
    match message:
        case Status():
            return "status", {"status": status_to_json(message)}
        case Watched():
            return "watched", {}
        case Heads():
            return "heads", {"heads": [head.hex() for head in message.heads]}
        case Located():
            return "located", {"line": message.position.line, "offset": message.position.offset}
        case Listed():
            return "listed", {
                "statuses": [status_to_json(status) for status in message.page.statuses],
                "next_token": message.page.next_token,
            }
        case Done():
            return "done", {}


STATUS_RESPONSE_READERS: Mapping[str, Callable[[Fields], ServerMessage]] = {
    "status": lambda fields: read_status(fields.nested("status")),
    "watched": lambda _: Watched(),
    "heads": lambda fields: Heads(fields.digests("heads", HEAD_SIZE)),
    "located": lambda fields: Located(Position(fields.count("line"), fields.count("offset"))),
    "listed": lambda fields: Listed(
        Page(tuple(read_status(status) for status in fields.all_nested("statuses")), fields.optional_text("next_token"))
    ),
    "done": lambda _: Done(),
}
