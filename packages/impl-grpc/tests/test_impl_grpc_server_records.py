"""Records on the server as any gRPC client sees it: generated classes, without this package's client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio
import pytest
from impl_grpc_ends import MemorySink, ends

from tailrace_common_api import (
    Argument,
    BulkRefused,
    DeadlineExceeded,
    GoingAway,
    IntegrityError,
    InvalidArgument,
    MessageTooLarge,
    ProtocolError,
    RecordBatch,
    RecordEndNotFound,
    TailraceError,
    Unsupported,
    record_problems,
)
from tailrace_impl_common import RecordDigest
from tailrace_impl_common.record_messages import MESSAGE_RECORDS
from tailrace_impl_grpc import GrpcServer, _server
from tailrace_impl_grpc._codec import MAX_DATA_MESSAGE
from tailrace_impl_grpc._error_table import error_from_status
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_impl_grpc._proto.v1 import tailrace_pb2_grpc as services
from tailrace_impl_server import create_manager
from tailrace_server_api import ResourceManager, TransportServerSettings

if TYPE_CHECKING:
    RecordsStub = services.RecordsAsyncStub

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

OPEN = pb.BulkRequest(open=pb.OpenBulk(collection="things", idempotency_key="k"))


class Numbers:
    """A source that counts up, and stops where a test wants it to."""

    def __init__(self) -> None:
        self.produced = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.closed = asyncio.Event()
        self.failure: Exception | None = None
        """Raised behind the last record."""

    async def produce(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        try:
            count = arguments.get("count", 10)
            assert isinstance(count, int)
            for number in range(count):
                await self.may_go_on.wait()
                self.produced += 1
                yield RecordBatch([b'{"n":%d}' % number], [str(number)])
            if self.failure is not None:
                raise self.failure
        finally:
            self.closed.set()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
async def manager(no_task_is_left: None, sink: MemorySink, numbers: Numbers) -> AsyncIterator[ResourceManager]:
    settings: dict[str, object] = {"group_records": 2, "group_seconds": 0.0}
    async with create_manager(None, settings, records=ends(sink, numbers.produce)) as managed:
        yield managed.manager


@pytest.fixture
async def server(manager: ResourceManager) -> AsyncIterator[GrpcServer]:
    server = GrpcServer()
    await server.start(manager, TransportServerSettings())
    yield server
    await server.close(5.0)


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


@pytest.fixture
def records(channel: grpc.aio.Channel) -> RecordsStub:
    return cast("RecordsStub", services.RecordsStub(channel))


async def answer_of(call: grpc.aio.StreamStreamCall[RequestT, ResponseT]) -> ResponseT:
    """Return the next message of a call."""
    message = await call.read()
    assert message is not grpc.aio.EOF
    return cast("ResponseT", message)


async def rest_of(call: grpc.aio.StreamStreamCall[RequestT, ResponseT]) -> list[ResponseT]:
    """Return what is left to read of a call that ends in order."""
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(cast("ResponseT", message))
    assert await call.code() is grpc.StatusCode.OK
    return messages


async def error_of(call: grpc.aio.Call) -> TailraceError:
    """Return the error with which a call ended."""
    code = await call.code()
    assert code is not grpc.StatusCode.OK
    return error_from_status(code, await call.details(), await call.trailing_metadata(), address="test")


def records_of(*data: bytes, keys: list[str] | None = None) -> pb.BulkRequest:
    return pb.BulkRequest(records=pb.RecordBatch(data=data, keys=keys))


def commit_of(*data: bytes, keys: list[str | None] | None = None) -> pb.BulkRequest:
    digest = RecordDigest()
    digest.update(RecordBatch(data, keys or ()))
    return pb.BulkRequest(commit=pb.CommitBulk(records=len(data), digest=digest.digest()))


async def test_generated_classes_are_enough_for_a_bulk(records: RecordsStub, sink: MemorySink) -> None:
    call = records.Bulk()
    await call.write(OPEN)
    opened = (await answer_of(call)).opened
    assert opened.id == sink.origins[0].id
    assert opened.content_type == "application/json"
    assert opened.until == opened.limits.window > opened.limits.record_bytes > 0
    assert not opened.HasField("result")
    await call.write(records_of(b"{}", b'{"n":1}', keys=["", "k"]))
    await call.write(records_of(b'{"n":2}'))
    await call.write(commit_of(b"{}", b'{"n":1}', b'{"n":2}', keys=[None, "k", None]))
    await call.done_writing()
    *windows, last = await rest_of(call)
    assert {message.WhichOneof("message") for message in windows} <= {"window"}
    result = last.committed.result
    assert (result.id, result.collection, result.records, result.size) == (opened.id, "things", 3, 17)
    assert sink.visible == [(b"{}", None), (b'{"n":1}', "k"), (b'{"n":2}', None)]
    # The same key again: the result is the only message.
    again = records.Bulk()
    await again.write(OPEN)
    (only,) = await rest_of(again)
    assert only.opened.result.repeated
    assert (only.opened.result.id, only.opened.result.digest) == (result.id, result.digest)


async def test_who_writes_everything_and_then_reads_needs_no_windows(records: RecordsStub, sink: MemorySink) -> None:
    messages = [OPEN, records_of(b"{}"), commit_of(b"{}")]
    answers = [answer async for answer in records.Bulk(iter(messages))]
    assert [answer.WhichOneof("message") for answer in answers] == ["opened", "committed"]
    assert sink.visible == [(b"{}", None)]


async def staged(call: grpc.aio.StreamStreamCall[pb.BulkRequest, pb.BulkResponse], sink: MemorySink) -> None:
    """Begin a bulk of which something is staged."""
    await call.write(OPEN)
    await call.read()
    await call.write(records_of(b"{}", b"{}", b"{}"))
    await sink.stored.wait()


async def test_a_half_close_without_a_commit_leaves_nothing(records: RecordsStub, sink: MemorySink) -> None:
    call = records.Bulk()
    await staged(call, sink)
    await call.done_writing()
    error = await error_of(call)
    assert isinstance(error, ProtocolError)
    assert "without its commit" in error.message
    await sink.rolled_back.wait()
    assert (sink.visible, sink.staged, sink.commits) == ([], {}, 0)


async def test_a_cancelled_bulk_leaves_nothing(records: RecordsStub, sink: MemorySink) -> None:
    call = records.Bulk()
    await staged(call, sink)
    call.cancel()
    await sink.rolled_back.wait()
    assert (sink.visible, sink.staged, sink.commits) == ([], {}, 0)


async def test_a_lost_connection_leaves_nothing(
    records: RecordsStub, channel: grpc.aio.Channel, sink: MemorySink
) -> None:
    await staged(records.Bulk(), sink)
    await channel.close()
    await sink.rolled_back.wait()
    assert (sink.visible, sink.staged, sink.commits) == ([], {}, 0)


async def test_what_was_not_received_as_sent_is_not_committed(records: RecordsStub, sink: MemorySink) -> None:
    call = records.Bulk()
    await staged(call, sink)
    await call.write(commit_of(b"{}", b"{}", b"[]"))
    assert isinstance(await error_of(call), IntegrityError)
    await sink.rolled_back.wait()
    assert (sink.visible, sink.commits) == ([], 0)


async def test_a_bad_record_ends_the_bulk_while_the_client_is_sending(records: RecordsStub, sink: MemorySink) -> None:
    call = records.Bulk()
    await call.write(OPEN)
    await call.read()
    await call.write(records_of(b"{}", b"{"))
    error = await error_of(call)
    assert isinstance(error, BulkRefused)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [problem.index for problem in record_problems(error)] == [1]
    await sink.rolled_back.wait()


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (records_of(b"{}"), ProtocolError),
        (commit_of(b"{}"), ProtocolError),
        (pb.BulkRequest(), Unsupported),
        (pb.BulkRequest(open=pb.OpenBulk(collection="nothing")), RecordEndNotFound),
        (pb.BulkRequest(open=pb.OpenBulk(collection="things", content_type="text/csv")), InvalidArgument),
        (pb.BulkRequest(open=pb.OpenBulk(collection="things", priority=5)), InvalidArgument),
    ],
)
async def test_what_begins_no_bulk_is_refused(
    records: RecordsStub, sink: MemorySink, first: pb.BulkRequest, error: type[TailraceError]
) -> None:
    call = records.Bulk()
    await call.write(first)
    assert type(await error_of(call)) is error
    assert sink.origins == []


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (OPEN, ProtocolError),
        (records_of(), ProtocolError),
        (records_of(b"{}", b"{}", keys=["k"]), ProtocolError),
        (records_of(b"{}", keys=["k" * 256]), ProtocolError),
        (records_of(*[b"{}"] * (MESSAGE_RECORDS + 1)), ProtocolError),
        (pb.BulkRequest(commit=pb.CommitBulk(records=3, digest=b"short")), ProtocolError),
        (pb.BulkRequest(), Unsupported),
    ],
)
async def test_hostile_messages_end_the_bulk(
    records: RecordsStub, sink: MemorySink, message: pb.BulkRequest, error: type[TailraceError]
) -> None:
    call = records.Bulk()
    await staged(call, sink)
    await call.write(message)
    assert type(await error_of(call)) is error
    await sink.rolled_back.wait()
    assert (sink.visible, sink.staged) == ([], {})


async def test_too_large_a_message_of_records_is_refused(channel: grpc.aio.Channel, sink: MemorySink) -> None:
    method: Any = channel.stream_stream("/tailrace.v1.Records/Bulk")
    call = method()
    await call.write(OPEN.SerializeToString())
    await call.read()
    await call.write(records_of(b"x" * MAX_DATA_MESSAGE).SerializeToString())
    error = await error_of(call)
    assert isinstance(error, MessageTooLarge)
    assert error.maximum == MAX_DATA_MESSAGE


async def test_generated_classes_are_enough_for_a_query(records: RecordsStub, numbers: Numbers) -> None:
    call = records.Query()
    arguments = {"count": pb.Value(int_value=5)}
    await call.write(pb.QueryRequest(open=pb.OpenQuery(source="numbers", arguments=arguments)))
    await call.done_writing()
    first, *batches, last = await rest_of(call)
    assert first.started.content_type == "application/json"
    data = [record for message in batches for record in message.records.data]
    keys: list[str | None] = [key for message in batches for key in message.records.keys]
    assert data == [b'{"n":%d}' % number for number in range(5)]
    assert keys == ["0", "1", "2", "3", "4"]
    digest = RecordDigest()
    digest.update(RecordBatch(data, keys))
    assert (last.end.records, last.end.digest) == (5, digest.digest())


async def test_a_query_keeps_to_its_window(records: RecordsStub, numbers: Numbers) -> None:
    call = records.Query()
    arguments = {"count": pb.Value(int_value=2)}
    await call.write(pb.QueryRequest(open=pb.OpenQuery(source="numbers", arguments=arguments, window=1)))
    assert (await answer_of(call)).WhichOneof("message") == "started"
    # One message may overdraw it.
    assert list((await answer_of(call)).records.data) == [b'{"n":0}']
    second = asyncio.ensure_future(answer_of(call))
    await call.write(pb.QueryRequest(window=pb.Window(until=100)))
    assert list((await second).records.data) == [b'{"n":1}']
    await call.done_writing()
    (end,) = await rest_of(call)
    assert end.end.records == 2


async def test_a_cancelled_query_ends_its_source(records: RecordsStub, numbers: Numbers) -> None:
    call = records.Query()
    arguments = {"count": pb.Value(int_value=10**9)}
    await call.write(pb.QueryRequest(open=pb.OpenQuery(source="numbers", arguments=arguments)))
    await call.read()
    await call.read()
    call.cancel()
    await numbers.closed.wait()
    # Also while it is waiting for its database.
    numbers.closed.clear()
    numbers.may_go_on.clear()
    waiting = records.Query()
    await waiting.write(pb.QueryRequest(open=pb.OpenQuery(source="numbers")))
    await waiting.read()
    waiting.cancel()
    await numbers.closed.wait()


async def test_what_a_source_says_ends_the_call(records: RecordsStub, numbers: Numbers) -> None:
    numbers.failure = RecordEndNotFound(kind="table", id="gone")
    call = records.Query()
    await call.write(pb.QueryRequest(open=pb.OpenQuery(source="numbers")))
    with pytest.raises(grpc.aio.AioRpcError):
        await rest_of(call)
    error = await error_of(call)
    assert isinstance(error, RecordEndNotFound)
    assert (error.kind, error.id) == ("table", "gone")


async def test_arguments_of_queries_are_checked(records: RecordsStub) -> None:
    for opening, expected in (
        (pb.OpenQuery(source="nothing"), RecordEndNotFound),
        (pb.OpenQuery(source="numbers", arguments={"unheard_of": pb.Value(int_value=1)}), InvalidArgument),
        (pb.OpenQuery(source="numbers", arguments={"count": pb.Value(double_value=float("nan"))}), InvalidArgument),
        (pb.OpenQuery(source="numbers", window=2**60), InvalidArgument),
    ):
        call = records.Query()
        await call.write(pb.QueryRequest(open=opening))
        assert type(await error_of(call)) is expected


async def test_unknown_queues_are_told(records: RecordsStub) -> None:
    error = await error_of(records.GetQueue(pb.GetQueueRequest(queue="nothing")))
    assert isinstance(error, RecordEndNotFound)
    assert (error.kind, error.id) == ("queue", "nothing")
    call = records.Work()
    await call.write(pb.WorkRequest(open=pb.OpenWork(queue="nothing", records=1, bytes=1000)))
    assert isinstance(await error_of(call), RecordEndNotFound)


async def test_calls_for_records_without_a_request_are_ended(
    records: RecordsStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "_REQUEST_TIMEOUT", 0.01)
    for call in (records.Bulk(), records.Query(), records.Work()):
        assert isinstance(await error_of(call), DeadlineExceeded)


async def test_closing_tells_who_uses_records(
    server: GrpcServer, records: RecordsStub, sink: MemorySink, numbers: Numbers
) -> None:
    bulk = records.Bulk()
    await staged(bulk, sink)
    numbers.may_go_on.clear()
    query = records.Query()
    await query.write(pb.QueryRequest(open=pb.OpenQuery(source="numbers")))
    await query.read()
    closing = asyncio.ensure_future(server.close(30.0))
    for call in (bulk, query):
        error = await error_of(call)
        assert isinstance(error, GoingAway)
        assert error.retry_after > 0
    # Nothing is left that would use up the grace.
    await asyncio.wait_for(closing, 10.0)
    await sink.rolled_back.wait()
    await numbers.closed.wait()
    assert (sink.visible, sink.staged) == ([], {})


async def test_a_commit_that_runs_survives_the_end_of_its_client(records: RecordsStub, sink: MemorySink) -> None:
    call = records.Bulk()
    await call.write(OPEN)
    await call.read()
    await call.write(records_of(b"{}"))
    sink.may_commit.clear()
    await call.write(commit_of(b"{}"))
    await sink.committing.wait()
    call.cancel()
    sink.may_commit.set()
    await sink.committed.wait()
    assert sink.visible == [(b"{}", None)]
    again = records.Bulk()
    await again.write(OPEN)
    (only,) = await rest_of(again)
    assert only.opened.result.records == 1
