import asyncio
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impl_server_manager_bench import LINES, Bench, Uploader, turned
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tailrace_common_api import (
    GoingAway,
    InternalError,
    NotFound,
    QuotaExceeded,
    ResourceState,
    StorageFailure,
    StorageFull,
    error_classes,
)
from tailrace_impl_server import LocalEventBus, Manager, MemoryCatalog, MemoryStorage, ServerSettings
from tailrace_impl_server._prometheus import Figures, PrometheusTelemetry
from tailrace_impl_server._storage_health import StorageHealth
from tailrace_server_api import Telemetry


def figures() -> Figures:
    return Figures(ready=True, uploads_open=2, uploads_waiting=1, resources_used=5, storage_bytes=123)


def families(telemetry: Telemetry) -> dict[str, Metric]:
    """Return what a scrape says, as Prometheus itself reads it."""
    media_type, body = telemetry.exposition()
    assert media_type.startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def value(telemetry: Telemetry, sample_name: str, **labels: str) -> float:
    """Return one sample; 0 for one that does not exist."""
    return sum(
        sample.value
        for family in families(telemetry).values()
        for sample in family.samples
        if sample.name == sample_name and all(sample.labels.get(key) == text for key, text in labels.items())
    )


def test_every_name_follows_the_conventions() -> None:
    telemetry = PrometheusTelemetry(figures)
    with telemetry.connection("grpc"), telemetry.request("grpc", "Read"):
        telemetry.refused("grpc", "overloaded")
        telemetry.checkpoint_made(0.001)
        telemetry.quota_refused(QuotaExceeded(limit="total storage", maximum=1, actual=2))
    found = families(telemetry)
    own = {name for name in found if name.startswith("tailrace_")}
    assert own == {
        "tailrace_build_info",
        "tailrace_bulks",
        "tailrace_bulks_open",
        "tailrace_checkpoint_duration_seconds",
        "tailrace_checkpoint_failures",
        "tailrace_checkpoints",
        "tailrace_connections",
        "tailrace_connections_open",
        "tailrace_event_loop_lag_seconds",
        "tailrace_queries",
        "tailrace_queue_consumers",
        "tailrace_queue_consumers_stalled",
        "tailrace_queue_records",
        "tailrace_quota_refusals",
        "tailrace_ready",
        "tailrace_received_bytes",
        "tailrace_records_sent",
        "tailrace_records_staged",
        "tailrace_refused",
        "tailrace_request_duration_seconds",
        "tailrace_requests",
        "tailrace_requests_in_progress",
        "tailrace_resource_events",
        "tailrace_resources_in_use",
        "tailrace_sent_bytes",
        "tailrace_storage_bytes",
        "tailrace_uploads_open",
        "tailrace_uploads_waiting",
    }
    assert {"process_open_fds", "process_max_fds", "process_resident_memory_bytes", "process_cpu_seconds"} <= set(found)
    for name, family in found.items():
        assert family.documentation, name
        for sample in family.samples:
            # No second series for each counter that tells when it was made.
            assert not sample.name.endswith("_created")
            if family.type == "counter":
                assert sample.name == f"{name}_total"


def test_a_request_is_counted_while_it_runs_and_by_its_end() -> None:
    telemetry = PrometheusTelemetry(figures)
    labels = {"transport": "grpc", "operation": "OpenUpload"}
    with telemetry.request("grpc", "OpenUpload") as request:
        request.received(7)
        request.received(5)
        request.sent(3)
        assert value(telemetry, "tailrace_requests_in_progress", **labels) == 1
        assert value(telemetry, "tailrace_received_bytes_total", **labels) == 12
        assert value(telemetry, "tailrace_sent_bytes_total", **labels) == 3
        assert value(telemetry, "tailrace_requests_total") == 0
    assert value(telemetry, "tailrace_requests_in_progress", **labels) == 0
    assert value(telemetry, "tailrace_requests_total", **labels, code="ok") == 1
    assert value(telemetry, "tailrace_request_duration_seconds_count", **labels) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound(id="secret-id"), "not_found"),
        (GoingAway(retry_after=1.0), "going_away"),
        (QuotaExceeded(limit="total storage", maximum=1, actual=2), "quota_exceeded"),
        (asyncio.CancelledError(), "cancelled"),
        (ZeroDivisionError("secret-text"), "internal"),
    ],
)
def test_a_request_that_fails_is_counted_by_its_code_and_by_nothing_else_of_the_error(
    error: BaseException, code: str
) -> None:
    telemetry = PrometheusTelemetry(figures)
    with pytest.raises(type(error)), telemetry.request("websocket", "Read"):
        raise error
    assert value(telemetry, "tailrace_requests_total", code=code) == 1
    assert value(telemetry, "tailrace_requests_in_progress") == 0
    assert value(telemetry, "tailrace_quota_refusals_total", limit="total storage") == (code == "quota_exceeded")
    assert b"secret" not in telemetry.exposition()[1]


def test_connections_and_refusals_are_counted() -> None:
    telemetry = PrometheusTelemetry(figures)
    with telemetry.connection("websocket"):
        with telemetry.connection("websocket"), telemetry.connection("grpc"):
            assert value(telemetry, "tailrace_connections_open", transport="websocket") == 2
        assert value(telemetry, "tailrace_connections_open", transport="websocket") == 1
    assert value(telemetry, "tailrace_connections_open") == 0
    assert value(telemetry, "tailrace_connections_total", transport="websocket") == 2
    telemetry.refused("grpc", "unauthenticated")
    assert value(telemetry, "tailrace_refused_total", transport="grpc", code="unauthenticated") == 1


def test_what_the_server_holds_is_looked_up_at_each_scrape() -> None:
    held = [Figures(ready=False, uploads_open=0, uploads_waiting=0, resources_used=0, storage_bytes=None), figures()]
    telemetry = PrometheusTelemetry(lambda: held[0])
    assert value(telemetry, "tailrace_ready") == 0
    assert "tailrace_storage_bytes" not in families(telemetry)
    del held[0]
    assert value(telemetry, "tailrace_ready") == 1
    assert value(telemetry, "tailrace_storage_bytes") == 123


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = PrometheusTelemetry(figures), PrometheusTelemetry(figures)
    with first.request("grpc", "Read"):
        pass
    assert value(first, "tailrace_requests_total") == 1
    assert value(second, "tailrace_requests_total") == 0


CODES = [cls.code for cls in error_classes()]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["connection", "request", "refused", "quota"]),
            st.text(min_size=1, max_size=20),
            st.integers(0, 2**40),
        ),
        max_size=40,
    )
)
def test_whatever_comes_the_labels_stay_bounded(steps: list[tuple[str, str, int]]) -> None:
    telemetry = PrometheusTelemetry(figures)

    strange = InternalError("of a code that nobody knows")
    received = 0
    for kind, text, number in steps:
        transport = ("grpc", "websocket", "http", "inprocess")[number % 4]
        if kind == "connection":
            with telemetry.connection(transport):
                pass
        elif kind == "refused":
            telemetry.refused(transport, text)
        elif kind == "quota":
            telemetry.quota_refused(QuotaExceeded(limit=text, maximum=number, actual=number))
        else:
            received += number
            vars(strange)["code"] = text
            with telemetry.request(transport, "Read") as request:
                request.received(number)
            with pytest.raises(InternalError), telemetry.request(transport, "Read"):
                raise strange
    allowed: dict[str, Callable[[str], bool]] = {
        "transport": {"grpc", "websocket", "http", "inprocess"}.__contains__,
        "operation": {"Read"}.__contains__,
        "code": {*CODES, "ok", "cancelled", "other"}.__contains__,
    }
    limits = set()
    for family in families(telemetry).values():
        for sample in family.samples:
            limits |= {sample.labels["limit"]} if "limit" in sample.labels else set()
            for name, label in sample.labels.items():
                assert name not in allowed or allowed[name](label), (sample.name, name, label)
    assert len(limits) <= 17
    # Doubles are exact up to there.
    assert received > 2**53 or value(telemetry, "tailrace_received_bytes_total") == received


def test_operations_beyond_all_bounds_are_counted_together() -> None:
    telemetry = PrometheusTelemetry(figures)
    for number in range(1000):
        with telemetry.request("other-transport", f"Operation{number}") as request:
            request.sent(1)
    assert value(telemetry, "tailrace_requests_total") == 1000
    assert value(telemetry, "tailrace_sent_bytes_total") == 1000
    (family,) = [family for name, family in families(telemetry).items() if name == "tailrace_requests"]
    assert len(family.samples) == 257
    assert value(telemetry, "tailrace_requests_total", operation="other") == 744


def test_a_scrape_may_run_in_any_thread_while_requests_are_counted() -> None:
    telemetry = PrometheusTelemetry(figures)
    failures: list[BaseException] = []

    def scrape() -> None:
        try:
            for _ in range(5):
                families(telemetry)
        except BaseException as error:
            failures.append(error)
            raise

    scraper = threading.Thread(target=scrape)
    scraper.start()
    count = 0
    while scraper.is_alive():
        with telemetry.request("grpc", f"Operation{count % 300}") as request:
            request.sent(1)
        count += 1
    scraper.join()
    assert failures == []
    assert value(telemetry, "tailrace_sent_bytes_total") == count


# The manager's own


async def scraped(bench: Bench, name: str, **labels: str) -> float:
    return await asyncio.to_thread(value, bench.manager.telemetry, name, **labels)


async def test_the_life_of_resources_is_counted(bench: Bench) -> None:
    manager = await bench.start()
    done, lost, gone = [Uploader(await manager.create(LINES)) for _ in range(3)]
    assert await scraped(bench, "tailrace_uploads_open") == 3
    await done.send(b"one\ntwo\n")
    await done.finish()
    await lost.ingest.release()
    assert await scraped(bench, "tailrace_uploads_waiting") == 1
    await manager.delete(gone.id)
    await turned(lambda: manager._uploads.sessions == 0)
    for event, count in {"created": 3, "completed": 1, "failed": 0, "deleted": 1}.items():
        assert await scraped(bench, "tailrace_resource_events_total", event=event) == count, event
    assert await scraped(bench, "tailrace_uploads_open") == 0
    assert await scraped(bench, "tailrace_checkpoints_total") >= 1
    assert await scraped(bench, "tailrace_checkpoint_duration_seconds_count") >= 1
    await (await manager.reopen(lost.id, lost.ingest.token)).abort("no more")
    assert await scraped(bench, "tailrace_resource_events_total", event="failed") == 1


async def test_the_lag_of_the_loop_is_measured(memory_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from tailrace_impl_server import _prometheus

    monkeypatch.setattr(_prometheus, "_LAG_INTERVAL", 0.001)
    manager = await memory_bench.start()
    while await scraped(memory_bench, "tailrace_event_loop_lag_seconds_count") < 3:
        pass
    await manager.close()
    assert manager._parts.telemetry._measuring is None


async def test_readiness_follows_the_life_of_the_server() -> None:
    manager = Manager(MemoryStorage(), MemoryCatalog(), LocalEventBus(), ServerSettings())
    assert (manager.ready, manager.unready_reason) == (False, "starting")
    await manager.start()
    assert (manager.ready, manager.unready_reason) == (True, None)
    uploader = Uploader(await manager.create(LINES))
    manager.drain()
    assert (manager.ready, manager.unready_reason) == (False, "shutting down")
    with pytest.raises(GoingAway):
        manager.admit()
    with pytest.raises(GoingAway):
        await manager.create(LINES)
    # What runs goes on.
    await uploader.send(b"x")
    assert (await uploader.finish()).state is ResourceState.COMPLETED
    await manager.close()
    assert manager.unready_reason == "shutting down"


async def test_a_storage_that_fails_makes_the_server_unready_until_it_works_again(bench: Bench) -> None:
    manager = await bench.start()
    gates = bench.storage.gates
    gates.failures["create"] = StorageFailure("the disk is gone")
    with pytest.raises(StorageFailure):
        await manager.create(LINES)
    assert manager.unready_reason == "the storage failed"
    assert await scraped(bench, "tailrace_ready") == 0
    del gates.failures["create"]
    uploader = Uploader(await manager.create(LINES))
    assert manager.ready
    gates.failures["checkpoint"] = StorageFailure("the disk is gone again")
    await uploader.send(b"x")
    with pytest.raises(StorageFailure):
        await uploader.announced()
    assert manager.unready_reason == "the storage failed"
    assert await scraped(bench, "tailrace_checkpoint_failures_total", code="storage_failure") == 1


async def test_a_full_storage_leaves_the_server_ready_to_be_read(bench: Bench) -> None:
    manager = await bench.start()
    bench.storage.gates.failures["create"] = StorageFull("no space")
    with pytest.raises(StorageFull):
        await manager.create(LINES)
    assert manager.ready


def test_a_failure_that_nothing_follows_is_forgotten_after_a_while() -> None:
    now = 100.0
    health = StorageHealth(lambda: now)
    with pytest.raises(StorageFailure), health.watched():
        raise StorageFailure("gone")
    assert health.failed
    with pytest.raises(InternalError), health.watched():
        raise InternalError("no word about the storage")
    assert health.failed
    now += 9.9
    assert health.failed
    now += 0.2
    assert not health.failed
