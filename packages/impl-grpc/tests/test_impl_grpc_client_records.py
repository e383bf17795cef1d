"""Conversations about records on the client's side: how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from tailrace_common_api import (
    BulkRefused,
    BulkResult,
    ClientSettings,
    InvalidArgument,
    ProtocolError,
    RecordBatch,
    RecordLimits,
    Settlement,
    Verdict,
    refused_records,
)
from tailrace_impl_common.messages import Request, ServerMessage
from tailrace_impl_common.record_messages import (
    BulkCommitted,
    BulkOpened,
    Left,
    OpenBulk,
    Query,
    QueryEnd,
    QueryStarted,
    Settle,
    Work,
    WorkOpened,
)
from tailrace_impl_grpc import GrpcConnection, _client_streams
from tailrace_impl_grpc._codec import method_of
from tailrace_impl_grpc._error_table import error_to_status
from tailrace_impl_grpc._poller import keep_poller

DIGEST = bytes(16)
RESULT = BulkResult(id="b", collection="c", records=1, size=2, digest=DIGEST, committed_at=1.0)
LIMITS = RecordLimits(record_bytes=1, bulk_records=1, bulk_bytes=1, bulk_idle=1.0, window=1)
OPENED = BulkOpened(id="b", content_type="t", limits=LIMITS, until=1)
BULK, QUERY, WORK = OpenBulk(collection="c"), Query(source="s"), Work(queue="q", records=1, bytes=1)


class Talking:
    """A server that answers a request with one message, and ends the call when it is told to."""

    def __init__(self, request: Request, answer: ServerMessage) -> None:
        self._method = method_of(request)
        self._answer = answer
        self.may_end = asyncio.Event()
        self.error: BulkRefused | None = None

    async def talk(self, _messages: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        await context.write(self._method.encode_response(self._answer))
        await self.may_end.wait()
        if self.error is not None:
            await context.abort(*error_to_status(self.error))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[GrpcConnection]:
        keep_poller()
        server = grpc.aio.server()
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self.talk)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(self._method.service, {self._method.name: handler})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        connection = GrpcConnection(f"grpc://127.0.0.1:{port}", ClientSettings())
        try:
            yield connection
        finally:
            self.may_end.set()
            await connection.close()
            await server.stop(None)


LAST: list[tuple[Request, ServerMessage]] = [
    (BULK, BulkCommitted(RESULT)),
    (BULK, BulkOpened(id="b", content_type="t", limits=LIMITS, until=0, result=RESULT)),
    (QUERY, QueryEnd(0, DIGEST)),
    (WORK, Left()),
]
NOT_LAST: list[tuple[Request, ServerMessage]] = [
    (BULK, OPENED),
    (QUERY, QueryStarted("t")),
    (QUERY, RecordBatch([b"x"])),
    (WORK, WorkOpened(consumer="w", content_type="t", lease=1.0)),
]


@pytest.mark.parametrize(("request_", "answer"), LAST)
async def test_behind_the_last_message_the_end_is_waited_for(request_: Request, answer: ServerMessage) -> None:
    talking = Talking(request_, answer)
    async with talking.connection() as connection:
        stream = await connection.open(request_)
        assert await stream.receive() == answer
        call = stream._call  # type: ignore[attr-defined]  # of this transport's stream
        closing = asyncio.ensure_future(stream.close())
        await asyncio.sleep(0)
        talking.may_end.set()
        await closing
        assert (await call.status()).code is grpc.StatusCode.OK


@pytest.mark.parametrize(("request_", "answer"), NOT_LAST)
async def test_before_the_last_message_closing_cancels(
    request_: Request, answer: ServerMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is to be waited for.
    monkeypatch.setattr(_client_streams, "STATUS_TIMEOUT", 1e6)
    async with Talking(request_, answer).connection() as connection:
        stream = await connection.open(request_)
        assert await stream.receive() == answer
        call = stream._call  # type: ignore[attr-defined]  # of this transport's stream
        await stream.close()
        assert (await call.status()).code is grpc.StatusCode.CANCELLED


async def test_the_reason_reaches_a_bulk_that_only_sends() -> None:
    talking = Talking(BULK, OPENED)
    talking.error = refused_records([], 0)

    async def send_for_ever() -> None:
        while True:
            await stream.send(RecordBatch([b"{}"]))

    async with talking.connection() as connection, await connection.open(BULK) as stream:
        assert await stream.receive() == OPENED
        talking.may_end.set()
        with pytest.raises(BulkRefused):
            await send_for_ever()


async def test_what_cannot_be_sent_leaves_the_conversation_alone() -> None:
    async with Talking(BULK, OPENED).connection() as connection, await connection.open(BULK) as stream:
        with pytest.raises(InvalidArgument):
            await stream.send(RecordBatch([b"x"], ["\ud800"]))
        await stream.send(RecordBatch([b"x"]))
        assert await stream.receive() == OPENED


async def test_the_reason_of_a_rejection_is_made_encodable() -> None:
    settle = Settle((Settlement(1, 1, Verdict.REQUEUE, 0.0, "no file \udcff"),))
    method = method_of(WORK)
    again = method.decode_request(method.encode_request(settle))
    assert again == Settle((Settlement(1, 1, Verdict.REQUEUE, 0.0, "no file ?"),))


async def test_records_of_a_server_that_are_none_end_the_query() -> None:
    class Hostile(Talking):
        async def talk(self, _messages: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await context.read()
            await context.write(b"\x12\x00")
            await context.read()

    async with Hostile(QUERY, QueryStarted("t")).connection() as connection, await connection.open(QUERY) as stream:
        with pytest.raises(ProtocolError, match="0 records in one message"):
            await stream.receive()
