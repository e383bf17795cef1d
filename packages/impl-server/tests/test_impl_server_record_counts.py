"""What a server tells Prometheus of its record streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from impl_server_recording_sink import RecordingSink, Sender, objects
from prometheus_client.parser import text_string_to_metric_families

from tailrace_common_api import BulkRefused, QueueFigures, StorageFailure
from tailrace_impl_server._function_source import FunctionSource
from tailrace_impl_server._manager import Manager
from tailrace_impl_server._server import create_manager
from tailrace_server_api import Collection, RecordEnds, Source


async def ticks(count: int) -> AsyncGenerator[dict[str, object], None]:
    for number in range(count):
        yield {"tick": number}


async def shown(manager: Manager, sample: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by its labels."""
    _, body = await asyncio.to_thread(manager.telemetry.exposition)
    return {
        tuple(found.labels.values()): found.value
        for family in text_string_to_metric_families(body.decode())
        for found in family.samples
        if found.name == sample
    }


async def test_bulks_and_queries_are_counted_by_the_names_of_their_ends() -> None:
    sink = RecordingSink()
    ends = RecordEnds(
        collections={"things": Collection(sink=sink)}, sources={"ticks": Source(source=FunctionSource(ticks))}
    )
    async with create_manager(None, {"group_seconds": 0}, records=ends) as server:
        manager = server.manager
        assert isinstance(manager, Manager)
        records = manager.records
        committed, refused, failed, cancelled, running = [Sender(await records.begin_bulk("things")) for _ in range(5)]
        assert await shown(manager, "tailrace_bulks_open") == {("things",): 5}
        await committed.send(*objects(3))
        await committed.commit()
        with pytest.raises(BulkRefused):
            await refused.commit()
        await refused.bulk.rollback()
        sink.failures["stage"].append(StorageFailure("gone"))
        await failed.send(*objects(1))
        with pytest.raises(StorageFailure):
            await failed.commit()
        await failed.bulk.rollback()
        await cancelled.bulk.rollback()
        await committed.bulk.rollback()
        assert await shown(manager, "tailrace_bulks_total") == {
            (outcome, "things"): 1 for outcome in ("committed", "refused", "failed", "cancelled")
        }
        assert await shown(manager, "tailrace_bulks_open") == {("things",): 1}
        assert await shown(manager, "tailrace_records_staged_total") == {("things",): 3}
        results = await records.query("ticks", {"count": 20})
        assert sum([len(batch.data) async for batch in results.batches]) == 20
        assert await shown(manager, "tailrace_queries_total") == {("ticks",): 1}
        assert await shown(manager, "tailrace_records_sent_total") == {("ticks",): 20}
        await running.bulk.rollback()


async def test_figures_of_queues_are_shown() -> None:
    async with create_manager(None, {}) as server:
        manager = server.manager
        assert isinstance(manager, Manager)
        counts = manager._parts.telemetry.records
        for ready in (9, 1):
            counts.queue(
                QueueFigures(queue="tasks", ready=ready, delayed=2, in_flight=3, dead=4, consumers=5, stalled=6)
            )
        assert await shown(manager, "tailrace_queue_records") == {
            ("tasks", "ready"): 1,
            ("tasks", "delayed"): 2,
            ("tasks", "in_flight"): 3,
            ("tasks", "dead"): 4,
        }
        assert await shown(manager, "tailrace_queue_consumers") == {("tasks",): 5}
        assert await shown(manager, "tailrace_queue_consumers_stalled") == {("tasks",): 6}
