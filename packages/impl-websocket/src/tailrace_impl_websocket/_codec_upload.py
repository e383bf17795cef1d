"""The messages of an upload to JSON and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tailrace_common_api import HEAD_SIZE, Visibility
from tailrace_impl_common.messages import (
    Abort,
    Checkpoint,
    ClientMessage,
    Finish,
    Finished,
    Opened,
    OpenUpload,
    ReopenUpload,
    ServerMessage,
    Window,
)
from tailrace_impl_websocket._codec_values import (
    limits_to_json,
    metadata_to_json,
    read_limits,
    read_metadata,
    read_status,
    read_visibility,
    status_to_json,
)
from tailrace_impl_websocket._fields import Fields

_SHA256_SIZE = 32


def upload_request_to_json(message: OpenUpload | ReopenUpload | Finish | Abort) -> tuple[str, dict[str, object]]:
    match message:
        case OpenUpload():
            return "open_upload", {
                "metadata": metadata_to_json(message.metadata),
                "visibility": message.visibility.value,
                "length": message.length,
                "sha256": None if message.sha256 is None else message.sha256.hex(),
                "idempotency_key": message.idempotency_key,
            }
        case ReopenUpload():
            return "reopen_upload", {"id": message.id, "token": message.token}
        case Finish():
            return "finish", {"size": message.size, "head": message.head.hex()}
        case Abort():
            return "abort", {"reason": message.reason}


UPLOAD_REQUEST_READERS: Mapping[str, Callable[[Fields], ClientMessage]] = {
    "open_upload": lambda fields: OpenUpload(
        metadata=read_metadata(fields.nested("metadata")),
        visibility=read_visibility(fields.optional_text("visibility") or Visibility.LIVE.value),
        length=fields.optional_count("length"),
        sha256=fields.optional_digest("sha256", _SHA256_SIZE),
        idempotency_key=fields.optional_text("idempotency_key"),
    ),
    "reopen_upload": lambda fields: ReopenUpload(id=fields.text("id"), token=fields.text("token")),
    "finish": lambda fields: Finish(fields.count("size"), fields.digest("head", HEAD_SIZE)),
    "abort": lambda fields: Abort(fields.text("reason")),
}


def upload_response_to_json(message: Opened | Checkpoint | Window | Finished) -> tuple[str, dict[str, object]]:
    match message:
        case Opened():
            return "opened", {
                "status": status_to_json(message.status),
                "token": message.token,
                "epoch": message.epoch,
                "offset": message.offset,
                "newlines": message.newlines,
                "head": message.head.hex(),
                "until": message.until,
                "limits": limits_to_json(message.limits),
            }
        case Checkpoint():
            return "checkpoint", {"size": message.size, "newlines": message.newlines, "head": message.head.hex()}
        case Window():
            return "window", {"until": message.until}
        case Finished():
            return "finished", {"status": None if message.status is None else status_to_json(message.status)}


def _finished(fields: Fields) -> Finished:
    status = fields.optional_nested("status")
    return Finished(None if status is None else read_status(status))


UPLOAD_RESPONSE_READERS: Mapping[str, Callable[[Fields], ServerMessage]] = {
    "opened": lambda fields: Opened(
        status=read_status(fields.nested("status")),
        token=fields.text("token"),
        epoch=fields.count("epoch"),
        offset=fields.count("offset"),
        newlines=fields.count("newlines"),
        head=fields.digest("head", HEAD_SIZE),
        until=fields.count("until"),
        limits=read_limits(fields.nested("limits")),
    ),
    "checkpoint": lambda fields: Checkpoint(
        fields.count("size"), fields.count("newlines"), fields.digest("head", HEAD_SIZE)
    ),
    "window": lambda fields: Window(fields.count("until")),
    "finished": _finished,
}
