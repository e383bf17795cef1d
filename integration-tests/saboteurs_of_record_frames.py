"""Defects of records over WebSocket, and of results over plain HTTP."""

from __future__ import annotations

from typing import Any

from sabotage import executed, put, saboteur


@saboteur("REC-7", cell="websocket-sqlite")
def cut_results_look_whole() -> None:
    from tailrace_impl_websocket import _http_query

    give = _http_query._Answer.give

    async def quiet(self: Any, *arguments: Any) -> None:
        try:
            await give(self, *arguments)
        except Exception:
            if not self.begun:
                raise
            executed()
            await self._send({"type": "http.response.body", "body": b""})

    put(_http_query._Answer, "give", quiet)


@saboteur("REC-7", cell="websocket-sqlite")
def results_are_sent_when_all_are_there() -> None:
    from tailrace_impl_websocket import _http_query

    give = _http_query._Answer.give

    async def late(self: Any, *arguments: Any) -> None:
        held: list[Any] = []
        send = self._send

        async def hold(message: Any) -> None:
            held.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                for each in held:
                    await send(each)
            else:
                executed()

        self._send = hold
        await give(self, *arguments)

    put(_http_query._Answer, "give", late)


@saboteur("REC-7", cell="websocket-sqlite")
def errors_of_queries_are_no_answers() -> None:
    from tailrace_impl_websocket import _http_query
    from tailrace_impl_websocket._refusal import send_error

    async def as_results(send: Any, error: Any, **more: Any) -> None:
        executed()
        await send_error(send, error, http_status=200)

    put(_http_query, "send_error", as_results)


@saboteur("REC-2", cell="websocket-sqlite")
def what_lacks_of_records_is_made_up() -> None:
    from tailrace_common_api import ProtocolError, RecordBatch
    from tailrace_impl_websocket import _binary_frame, _record_frame

    parse = _record_frame.parse_records

    def lenient(frame: bytes) -> Any:
        try:
            return parse(frame)
        except ProtocolError:
            executed()
            return RecordBatch([b"{}"])

    put(_binary_frame, "parse_records", lenient)
