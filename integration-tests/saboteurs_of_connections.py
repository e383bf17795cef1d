"""Defects around connections, errors, and what others send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sabotage import executed, saboteur


@saboteur("CON-2", trap="stuck-connection", cell="websocket-memory")
def connection_is_stuck_behind_a_failure() -> None:
    from tailrace_impl_websocket._server_streams import ServerConnection

    real: Callable[..., Any] = ServerConnection._tell

    async def tell(self: Any, number: int, failure: Any) -> None:
        executed()
        await real(self, number, failure)
        self._frames._taker = None

    ServerConnection._tell = tell  # type: ignore[method-assign]  # the defect


@saboteur("UPL-1", "CON-2", trap="state-after-sending", cell="websocket-memory")
def window_is_granted_after_it_was_told() -> None:
    from tailrace_impl_common.messages import Opened
    from tailrace_impl_websocket import _server_conversation as module

    real: Callable[..., Any] = module.ServerStream.send

    async def send(self: Any, message: Any) -> None:
        if isinstance(message, Opened):
            executed()
            await self._connection.send_text(module.encode_from_server(self._number, message))  # type: ignore[attr-defined]  # the defect
            # Long enough for the answer to be there first.
            await asyncio.sleep(0.1)
            self._until = message.until
            self._room = message.until - message.offset
            return
        await real(self, message)

    module.ServerStream.send = send  # type: ignore[method-assign]  # the defect


@saboteur("CON-2")
def mistakes_are_told_as_defects() -> None:
    from tailrace_common_api import InternalError, ProtocolError
    from tailrace_impl_common._download_machine import DownloadSender

    real: Callable[..., bool] = DownloadSender.receive

    def receive(self: Any, message: Any) -> bool:
        try:
            return real(self, message)
        except ProtocolError as error:
            executed()
            raise InternalError(error.message) from None

    DownloadSender.receive = receive  # type: ignore[method-assign]  # the defect


@saboteur("CON-3", cell="websocket-memory")
def close_reason_is_cut_within_a_character() -> None:
    from tailrace_impl_websocket import _server_streams

    def close_reason(text: str) -> str:
        executed()
        return text.encode()[:123].decode("utf-8", "replace")

    vars(_server_streams)["close_reason"] = close_reason


@saboteur("CON-3", cell="websocket-memory")
def bad_frames_are_closed_without_a_word() -> None:
    from tailrace_impl_websocket._buffered_protocol import BufferedFrameProtocol

    def refused(self: Any, close: Any, error: Any) -> None:
        executed()
        self._write_close(close)
        self._disconnect(close.code, close.reason)
        self.transport.close()

    BufferedFrameProtocol.refused = refused  # type: ignore[method-assign]  # the defect


@saboteur("INT-2", cell="websocket-memory")
def payloads_lose_the_beginning_that_came_with_their_header() -> None:
    from tailrace_impl_websocket._frame_reader import FrameReader

    real: Callable[..., None] = FrameReader._begin_payload

    def begin_payload(self: Any, first: int, size: int, mask: bytes, beginning: memoryview) -> None:
        executed()
        real(self, first, size, mask, memoryview(bytes(len(beginning))))

    FrameReader._begin_payload = begin_payload  # type: ignore[method-assign]  # the defect


@saboteur("DWN-6", cell="websocket-memory")
def buffers_are_used_again_while_somebody_looks_at_them() -> None:
    _take_all_buffers_for_free()


@saboteur("DWN-6", cell="in-process-filesystem")
def what_was_read_changes_while_somebody_looks_at_it() -> None:
    _take_all_buffers_for_free()


def _take_all_buffers_for_free() -> None:
    from tailrace_impl_common import _reusable_buffers

    def is_free(buffer: bytearray) -> bool:
        executed()
        return True

    vars(_reusable_buffers)["_is_free"] = is_free


@saboteur("CON-4", cell="grpc-memory")
def errors_lose_their_details() -> None:
    from tailrace_common_api import RangeNotSatisfiable

    def details(self: Any) -> dict[str, Any]:
        executed()
        return {}

    RangeNotSatisfiable.details = details  # type: ignore[method-assign]  # the defect


@saboteur("ACC-3", cell="in-process-filesystem")
def ids_of_others_are_not_checked() -> None:
    from tailrace_impl_server import _manager

    def check_id(text: str) -> str:
        executed()
        return text

    vars(_manager)["check_id"] = check_id


@saboteur("ACC-3")
def texts_of_others_are_not_escaped() -> None:
    from tailrace_common_api import _errors

    def shown(text: str) -> str:
        executed()
        return text

    _errors._shown = shown
