"""Work on the server as any gRPC client sees it: generated classes, over the embedded database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio
import pytest

from tailrace_common_api import GoingAway, InvalidArgument, ProtocolError, TailraceError, Unsupported
from tailrace_impl_common import ConnectedClient
from tailrace_impl_grpc import GrpcServer, connect
from tailrace_impl_grpc._error_table import error_from_status
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_impl_grpc._proto.v1 import tailrace_pb2_grpc as services
from tailrace_impl_server import create_manager
from tailrace_server_api import ResourceManager, TransportServerSettings

if TYPE_CHECKING:
    RecordsStub = services.RecordsAsyncStub

ResponseT = TypeVar("ResponseT")
Consumer = grpc.aio.StreamStreamCall[pb.WorkRequest, pb.WorkResponse]


@pytest.fixture
async def manager(no_task_is_left: None, tmp_path: Path) -> AsyncIterator[ResourceManager]:
    async with create_manager(tmp_path, {}, records={"queues": {"tasks": {}, "quick": {"lease": 0.2}}}) as managed:
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


async def feed(client: ConnectedClient, count: int, *, queue: str = "tasks", priority: int = 0) -> None:
    async with client.bulk(queue, priority=priority) as bulk:
        for number in range(count):
            await bulk.send({"n": number, "priority": priority}, key=str(number))


async def answer_of(call: Consumer) -> pb.WorkResponse:
    """Return the next message of a call."""
    message: object = await call.read()
    assert isinstance(message, pb.WorkResponse)
    return message


async def next_of(call: Consumer, kind: str) -> Any:
    """Return the next message of a kind, whatever comes before it."""
    while (message := await answer_of(call)).WhichOneof("message") != kind:
        pass
    return getattr(message, kind)


async def error_of(call: grpc.aio.Call) -> TailraceError:
    """Return the error with which a call ended."""
    code = await call.code()
    assert code is not grpc.StatusCode.OK
    return error_from_status(code, await call.details(), await call.trailing_metadata(), address="test")


async def begin(records: RecordsStub, credit: int, *, queue: str = "tasks") -> Consumer:
    """Begin to consume, with the first message read."""
    call = records.Work()
    await call.write(pb.WorkRequest(open=pb.OpenWork(queue=queue, records=credit, bytes=1 << 20)))
    opened = (await answer_of(call)).opened
    assert opened.consumer
    assert opened.content_type == "application/json"
    assert opened.lease == (0.2 if queue == "quick" else 30.0)
    return call


async def handed(call: Consumer, count: int) -> list[tuple[int, int, bytes, str]]:
    """Return the next deliveries: id, attempt, data and key of each."""
    found: list[tuple[int, int, bytes, str]] = []
    while len(found) < count:
        message = await next_of(call, "deliveries")
        found.extend(zip(message.ids, message.attempts, message.data, message.keys, strict=True))
    assert len(found) == count
    return found


def settle(*answers: tuple[int, int, pb.Verdict], **more: Any) -> pb.WorkRequest:
    settlements = [pb.Settlement(id=id_, attempt=attempt, verdict=verdict, **more) for id_, attempt, verdict in answers]
    return pb.WorkRequest(settle=pb.Settle(settlements=settlements))


async def figures(records: RecordsStub, queue: str = "tasks") -> pb.QueueFigures:
    return await records.GetQueue(pb.GetQueueRequest(queue=queue))


async def test_generated_classes_are_enough_to_work(records: RecordsStub, client: ConnectedClient) -> None:
    await feed(client, 5)
    call = await begin(records, 2)
    first = await handed(call, 2)
    assert [(attempt, key) for _, attempt, _, key in first] == [(1, "0"), (1, "1")]
    assert first[0][2] == b'{"n":0,"priority":0}'
    depth = await figures(records)
    assert (depth.queue, depth.ready, depth.in_flight, depth.consumers) == ("tasks", 3, 2, 1)
    await call.write(settle(*((id_, attempt, pb.VERDICT_ACKNOWLEDGE) for id_, attempt, _, _ in first)))
    assert list((await next_of(call, "settled")).counted) == [True, True]
    second = await handed(call, 2)
    assert [key for *_, key in second] == ["2", "3"]
    # What was answered before, and differently now, does not count; and what was never handed out does not.
    await call.write(settle((*first[0][:2], pb.VERDICT_DEAD_LETTER), (2**62, 1, pb.VERDICT_ACKNOWLEDGE)))
    assert list((await next_of(call, "settled")).counted) == [False, False]
    await call.write(pb.WorkRequest(leave=pb.Leave()))
    await call.done_writing()
    await next_of(call, "left")
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    # What it had not answered is there for others at once.
    depth = await figures(records)
    assert (depth.ready, depth.in_flight, depth.consumers) == (3, 0, 0)


async def test_credit_is_told_taken_back_and_given(records: RecordsStub, client: ConnectedClient) -> None:
    await feed(client, 3)
    call = await begin(records, 1)
    ((id_, attempt, _, _),) = await handed(call, 1)
    stalled = await next_of(call, "credit_set")
    assert (stalled.sequence, stalled.outstanding, stalled.stalled) == (0, 1, True)
    await call.write(pb.WorkRequest(credit=pb.Credit(sequence=1, records=0, bytes=0)))
    while (await next_of(call, "credit_set")).sequence != 1:
        pass
    await call.write(settle((id_, attempt, pb.VERDICT_ACKNOWLEDGE)))
    await next_of(call, "settled")
    assert (await figures(records)).in_flight == 0
    await call.write(pb.WorkRequest(credit=pb.Credit(sequence=2, records=5, bytes=1 << 20)))
    assert [key for *_, key in await handed(call, 2)] == ["1", "2"]
    call.cancel()


async def test_the_most_urgent_work_comes_first(records: RecordsStub, client: ConnectedClient) -> None:
    await feed(client, 2)
    await feed(client, 1, priority=7)
    call = await begin(records, 1)
    message = await next_of(call, "deliveries")
    assert (list(message.priorities), list(message.data)) == ([7], [b'{"n":0,"priority":7}'])
    call.cancel()


async def test_rejected_work_is_requeued_or_laid_aside(records: RecordsStub, client: ConnectedClient) -> None:
    await feed(client, 2)
    call = await begin(records, 2)
    (again, attempt, _, _), (dead, *_) = await handed(call, 2)
    await call.write(
        pb.WorkRequest(
            settle=pb.Settle(
                settlements=[
                    pb.Settlement(id=again, attempt=attempt, verdict=pb.VERDICT_REQUEUE, reason="busy"),
                    pb.Settlement(id=dead, attempt=1, verdict=pb.VERDICT_DEAD_LETTER, reason="no such address"),
                ]
            )
        )
    )
    ((id_, attempt, _, key),) = await handed(call, 1)
    assert (id_, attempt, key) == (again, 2, "0")
    assert (await figures(records)).dead == 1
    await call.write(settle((id_, attempt, pb.VERDICT_EXTEND)))
    assert list((await next_of(call, "settled")).counted) == [True]
    call.cancel()


@pytest.mark.parametrize("how", ["cancel", "half-close"])
async def test_the_work_of_a_lost_consumer_comes_again_behind_its_lease(
    records: RecordsStub, client: ConnectedClient, how: str
) -> None:
    await feed(client, 1, queue="quick")
    lost = await begin(records, 1, queue="quick")
    ((id_, attempt, _, _),) = await handed(lost, 1)
    if how == "cancel":
        lost.cancel()
    else:
        await lost.done_writing()
        assert isinstance(await error_of(lost), ProtocolError)
    other = await begin(records, 1, queue="quick")
    ((again, second, _, _),) = await handed(other, 1)
    assert (again, second) == (id_, attempt + 1)
    # The first one is too late now.
    await other.write(settle((id_, attempt, pb.VERDICT_ACKNOWLEDGE)))
    assert list((await next_of(other, "settled")).counted) == [False]
    other.cancel()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (pb.WorkRequest(settle=pb.Settle()), ProtocolError),
        (settle((1, 1, pb.VERDICT_UNSPECIFIED)), InvalidArgument),
        (settle((1, 0, pb.VERDICT_ACKNOWLEDGE)), InvalidArgument),
        (settle((1, 1, pb.VERDICT_REQUEUE), seconds=-1.0), InvalidArgument),
        (settle((1, 1, pb.VERDICT_REQUEUE), reason="x" * 1025), InvalidArgument),
        (pb.WorkRequest(credit=pb.Credit(sequence=0, records=1, bytes=1)), InvalidArgument),
        (pb.WorkRequest(credit=pb.Credit(sequence=1, records=2**40, bytes=1)), InvalidArgument),
        (pb.WorkRequest(open=pb.OpenWork(queue="tasks", records=1, bytes=1)), ProtocolError),
        (pb.WorkRequest(), Unsupported),
    ],
)
async def test_hostile_messages_end_the_consumer(
    records: RecordsStub, message: pb.WorkRequest, error: type[TailraceError]
) -> None:
    call = await begin(records, 1)
    await call.write(message)
    assert type(await error_of(call)) is error
    assert (await figures(records)).consumers == 0


async def test_closing_tells_consumers(server: GrpcServer, records: RecordsStub, client: ConnectedClient) -> None:
    await feed(client, 1)
    call = await begin(records, 1)
    await handed(call, 1)
    closing = asyncio.ensure_future(server.close(30.0))
    error = await error_of(call)
    assert isinstance(error, GoingAway)
    assert error.retry_after > 0
    # Nothing is left that would use up the grace.
    await asyncio.wait_for(closing, 10.0)


async def test_this_packages_client_works_a_queue(client: ConnectedClient, url: str) -> None:
    await feed(client, 100)
    found: list[int] = []
    async with connect(url) as other:
        async for delivery in other.work("tasks", credit=4):
            found.append(delivery.json()["n"])
            await delivery.ack()
            if len(found) == 100:
                break
    assert found == list(range(100))
    depth = await client.queue_figures("tasks")
    assert (depth.ready, depth.in_flight) == (0, 0)
