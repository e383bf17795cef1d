"""Queues of a server as a whole: fed by bulks, worked, watched, and closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from impl_server_recording_sink import Sender, objects

from tailrace_common_api import (
    GoingAway,
    InvalidArgument,
    Overloaded,
    RecordEndNotFound,
    Settlement,
    StorageFailure,
    Verdict,
)
from tailrace_impl_server import ServerSettings
from tailrace_impl_server._queue_sampler import QueueSampler
from tailrace_impl_server._record_counts import RecordCounts
from tailrace_impl_server._record_declarations import declared_ends
from tailrace_impl_server._record_streams import RecordStreams
from tailrace_impl_server._work_dispatcher import WorkDispatcher
from tailrace_server_api import Handed, WorkSession

OPTIONS = {"group_seconds": 0, "sweep_interval": 0.01, "max_consumers": 3}


@pytest.fixture
async def counts() -> RecordCounts:
    return RecordCounts()


@pytest.fixture
async def streams(tmp_path: Path, counts: RecordCounts) -> AsyncGenerator[RecordStreams, None]:
    settings = ServerSettings.from_options(OPTIONS)
    ends = declared_ends({"queues": {"tasks": {"max_attempts": 1}, "letters": {}}}, tmp_path, settings)
    streams = RecordStreams(ends, settings, counts)
    await streams.start()
    yield streams
    await streams.close()


async def feed(streams: RecordStreams, count: int, *, queue: str = "tasks", priority: int = 0) -> None:
    sender = Sender(await streams.begin_bulk(queue, priority=priority))
    await sender.send(*objects(count, first=1000 * priority))
    await sender.commit()


async def take(session: WorkSession) -> list[bytes]:
    """Return what the session is handed, and answer it."""
    while not isinstance(told := await session.next(), Handed):
        pass
    answers = [Settlement(record.id, record.attempt, Verdict.ACKNOWLEDGE) for record in told.records]
    assert await session.settle(answers) == [True] * len(answers)
    return [record.data for record in told.records]


async def test_bulks_feed_queues(streams: RecordStreams) -> None:
    await feed(streams, 3)
    await feed(streams, 1, priority=5)
    session = await streams.work("tasks")
    session.set_credit(0, records=4, bytes=1000)
    got: list[bytes] = []
    while len(got) < 4:
        got.extend(await take(session))
    assert got == [*objects(1, first=5000), *objects(3)]
    await session.leave()


async def test_dead_letters_are_worked_and_not_fed(streams: RecordStreams) -> None:
    await feed(streams, 1)
    session = await streams.work("tasks")
    session.set_credit(0, records=1, bytes=1000)
    while not isinstance(told := await session.next(), Handed):
        pass
    (record,) = told.records
    await session.settle([Settlement(record.id, record.attempt, Verdict.DEAD_LETTER, reason="no")])
    await session.leave()
    assert (await streams.queue_figures("tasks")).dead == 1
    dead = await streams.work("tasks.dead")
    dead.set_credit(0, records=1, bytes=1000)
    assert await take(dead) == objects(1)
    await dead.leave()
    with pytest.raises(RecordEndNotFound):
        await streams.begin_bulk("tasks.dead")


async def test_names_are_looked_up(streams: RecordStreams) -> None:
    with pytest.raises(RecordEndNotFound):
        await streams.work("nowhere")
    with pytest.raises(RecordEndNotFound):
        await streams.queue_figures("nowhere")
    with pytest.raises(InvalidArgument, match="priority"):
        await streams.begin_bulk("tasks", priority=1001)


async def test_the_number_of_consumers_is_limited_over_all_queues(streams: RecordStreams) -> None:
    sessions = [await streams.work(queue) for queue in ("tasks", "letters", "tasks.dead")]
    for queue in ("tasks", "letters"):
        with pytest.raises(Overloaded):
            await streams.work(queue)
    await sessions.pop().leave()
    sessions.append(await streams.work("letters"))
    assert (await streams.queue_figures("letters")).consumers == 2
    for session in sessions:
        await session.release()


async def test_figures_are_sampled(streams: RecordStreams, counts: RecordCounts) -> None:
    await feed(streams, 7, queue="letters")
    queues = {"tasks", "tasks.dead", "letters", "letters.dead"}
    async with asyncio.timeout(10):
        # Nothing tells of a sample, and queues are sampled one after the other.
        while counts._queues.keys() != queues or counts._queues["letters"].ready != 7:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_queue_that_does_not_answer_keeps_its_figures(
    streams: RecordStreams, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(WorkDispatcher):
        async def figures(self) -> None:  # type: ignore[override]  # it never returns
            raise errors.pop()

    errors = [ValueError("odd"), StorageFailure("gone")]
    broken = Failing("letters", streams._ends.queues["letters"], streams._settings)
    counts = RecordCounts()
    sampler = QueueSampler([broken, streams._dispatchers["tasks"]], counts, interval=1)
    for _ in range(2):
        await sampler.sample()
    assert counts._queues.keys() == {"tasks"}
    assert "gone" in caplog.text
    assert "odd" in caplog.text


async def test_a_server_that_goes_tells_consumers(streams: RecordStreams) -> None:
    session = await streams.work("tasks")
    waiting = asyncio.create_task(session.next())
    await asyncio.sleep(0)
    streams.go_away()
    with pytest.raises(GoingAway):
        await waiting
    for late in (streams.work("tasks"), streams.queue_figures("tasks")):
        with pytest.raises(GoingAway):
            await late
    await session.release()


async def test_what_was_fed_outlives_the_server(tmp_path: Path) -> None:
    settings = ServerSettings.from_options(OPTIONS)
    for rounds in (1, 2):
        streams = RecordStreams(declared_ends({"queues": {"tasks": {}}}, tmp_path, settings), settings)
        await streams.start()
        await feed(streams, 3)
        assert (await streams.queue_figures("tasks")).ready == 3 * rounds
        await streams.close()
