"""What a server counts of itself, in the form that Prometheus reads.

Every server has a registry of its own. Labels are bounded: names of transports, operations, states, limits and error
codes come from this software and never from a client. Ids, names, tokens and addresses are no labels.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from tailrace_common_api import QuotaExceeded, ResourceState, TailraceError, error_classes
from tailrace_impl_server._record_counts import RecordCounts
from tailrace_server_api import RequestTelemetry, Telemetry

_CODES = frozenset(cls.code for cls in error_classes())
_OTHER = "other"
"""Stands for every value of a label beyond those that are known or have room."""
_MOST_OPERATIONS = 256
_MOST_LIMITS = 16

_REQUEST_SECONDS = (0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0)
_CHECKPOINT_SECONDS = (0.0001, 0.00025, 0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0)
_LAG_SECONDS = (0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0)
_LAG_INTERVAL = 1.0
"""Time between two measurements of the event loop's lag, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is not counted but looked up when somebody asks; taken in any thread."""

    ready: bool
    """Whether the server takes new work."""
    uploads_open: int
    """Uploads with a session."""
    uploads_waiting: int
    """Uploads whose uploader may come back within the grace period."""
    resources_used: int
    """Resources that somebody reads or writes at the moment."""
    storage_bytes: int | None
    """Bytes of all resources; ``None`` where it is not known."""


class PrometheusTelemetry(Telemetry):
    """Counts one server. Belongs to its event loop, but for :meth:`exposition`, which is for any thread."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        """Begin at zero; ``figures`` is called for each scrape."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._connections: dict[str, _Connections] = {}
        registry.register(_ConnectionCounts(self._connections))
        self._refused = Counter(
            "tailrace_refused",
            "Connections and requests that were refused before they began, by the code of the error.",
            ["transport", "code"],
            registry=registry,
        )
        self._duration = Histogram(
            "tailrace_request_duration_seconds",
            "Time from the first message of a request to its end.",
            ["transport", "operation"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        resources = Counter(
            "tailrace_resource_events",
            "Resources that were created, reached a terminal state, or were deleted.",
            ["event"],
            registry=registry,
        )
        self._created, self._deleted = resources.labels("created"), resources.labels("deleted")
        self._ended = {state: resources.labels(state.value.lower()) for state in ResourceState if state.terminal}
        self._checkpoints = Counter("tailrace_checkpoints", "Checkpoints that were announced.", registry=registry)
        self._checkpoint_failures = Counter(
            "tailrace_checkpoint_failures", "Checkpoints that failed, by code.", ["code"], registry=registry
        )
        self._checkpoint_duration = Histogram(
            "tailrace_checkpoint_duration_seconds",
            "Time to store and announce a checkpoint.",
            buckets=_CHECKPOINT_SECONDS,
            registry=registry,
        )
        self._quota = Counter(
            "tailrace_quota_refusals", "Requests that were refused for a quota, by quota.", ["limit"], registry=registry
        )
        self._lag = Histogram(
            "tailrace_event_loop_lag_seconds",
            "How late the event loop does what is due, measured once a second.",
            buckets=_LAG_SECONDS,
            registry=registry,
        )
        registry.register(_LookedUp(figures))
        self._operations: dict[tuple[str, str], _Operation] = {}
        registry.register(_RequestCounts(self._operations))
        self.records = RecordCounts()
        """Counts record streams."""
        registry.register(self.records)
        self._shown = _WithoutTimesOfCreation(registry)
        self._limits: set[str] = set()
        self._measuring: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to measure the running event loop."""
        self._measure_again(asyncio.get_running_loop())

    def close(self) -> None:
        """Stop measuring; what was counted can still be read. Idempotent."""
        if self._measuring is not None:
            self._measuring.cancel()
            self._measuring = None

    # What transports count.

    def connection(self, transport: str) -> AbstractContextManager[None]:
        known = self._connections.get(transport)
        if known is None:
            known = self._connections[transport] = _Connections()
        return known

    def request(self, transport: str, operation: str) -> RequestTelemetry:
        return _Request(self._operation(transport, operation))

    def refused(self, transport: str, code: str) -> None:
        self._refused.labels(transport, _known(code)).inc()

    def exposition(self) -> tuple[str, bytes]:
        """Return all figures. Blocks: reads what the kernel says of this process."""
        return CONTENT_TYPE_LATEST, generate_latest(self._shown)

    # What the manager counts.

    def created(self) -> None:
        """Count a new resource."""
        self._created.inc()

    def ended(self, state: ResourceState) -> None:
        """Count a resource that reached a terminal state."""
        self._ended[state].inc()

    def deleted(self) -> None:
        """Count a resource that was deleted."""
        self._deleted.inc()

    def checkpoint_made(self, seconds: float) -> None:
        """Count a checkpoint that took so long."""
        self._checkpoint_duration.observe(seconds)
        self._checkpoints.inc()

    def checkpoint_failed(self, error: TailraceError) -> None:
        """Count a checkpoint that could not be made."""
        self._checkpoint_failures.labels(_known(error.code)).inc()

    def quota_refused(self, error: QuotaExceeded) -> None:
        """Count a refusal for a quota."""
        limit = error.limit
        if limit not in self._limits:
            if len(self._limits) >= _MOST_LIMITS:
                limit = _OTHER
            self._limits.add(limit)
        self._quota.labels(limit).inc()

    def _operation(self, transport: str, operation: str) -> _Operation:
        known = self._operations.get((transport, operation))
        if known is not None:
            return known
        if len(self._operations) >= _MOST_OPERATIONS:
            transport = operation = _OTHER
        made = _Operation(self._duration.labels(transport, operation), self.quota_refused)
        return self._operations.setdefault((transport, operation), made)

    def _measure_again(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + _LAG_INTERVAL

        def measure() -> None:
            self._lag.observe(max(0.0, loop.time() - due))
            self._measure_again(loop)

        self._measuring = loop.call_at(due, measure)


def _known(code: str) -> str:
    return code if code in _CODES else _OTHER


class _Connections:
    """Counts the connections of one transport; entered by each of them."""

    __slots__ = ("begun", "open")

    def __init__(self) -> None:
        # Plain numbers, as those of operations: over gRPC they change with each call of a client that makes one by one.
        self.begun = 0
        self.open = 0

    def __enter__(self) -> None:
        self.begun += 1
        self.open += 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.open -= 1


class _Operation:
    """Counts one operation over one transport."""

    __slots__ = ("codes", "duration", "quota_refused", "received", "running", "sent")

    def __init__(self, duration: Histogram, quota_refused: Callable[[QuotaExceeded], None]) -> None:
        self.duration = duration
        self.quota_refused = quota_refused
        # Plain numbers, since they change with each request and chunk: one loop writes them, and a scrape reads them.
        self.running = 0
        self.received = 0
        self.sent = 0
        self.codes: dict[str, int] = {}
        """Requests that ended, by code."""


class _Request(RequestTelemetry):
    __slots__ = ("_operation", "_started")

    def __init__(self, operation: _Operation) -> None:
        self._operation = operation
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._operation.running += 1
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        operation = self._operation
        operation.running -= 1
        operation.duration.observe(time.perf_counter() - self._started)
        code = _code_of(exc)
        operation.codes[code] = operation.codes.get(code, 0) + 1
        if isinstance(exc, QuotaExceeded):
            operation.quota_refused(exc)

    def received(self, count: int) -> None:
        self._operation.received += count

    def sent(self, count: int) -> None:
        self._operation.sent += count


def _code_of(exc: BaseException | None) -> str:
    if exc is None:
        return "ok"
    if isinstance(exc, TailraceError):
        return _known(exc.code)
    return "cancelled" if isinstance(exc, asyncio.CancelledError) else "internal"


class _ConnectionCounts(Collector):
    """Connections of each transport."""

    def __init__(self, connections: dict[str, _Connections]) -> None:
        self._connections = connections

    def collect(self) -> Iterable[Metric]:
        begun = CounterMetricFamily(
            "tailrace_connections",
            "Connections that were accepted; over gRPC, each time that one begins to have calls.",
            labels=["transport"],
        )
        at_present = GaugeMetricFamily(
            "tailrace_connections_open",
            "Connections at the moment; over gRPC, those that have calls.",
            labels=["transport"],
        )
        for transport, connections in list(self._connections.items()):
            begun.add_metric([transport], connections.begun)
            at_present.add_metric([transport], connections.open)
        return (begun, at_present)

    def describe(self) -> Iterable[Metric]:
        return ()


class _RequestCounts(Collector):
    """Requests that run and that ended, and what was received and sent."""

    def __init__(self, operations: dict[tuple[str, str], _Operation]) -> None:
        self._operations = operations

    def collect(self) -> Iterable[Metric]:
        labels = ["transport", "operation"]
        ended = CounterMetricFamily(
            "tailrace_requests",
            "Requests that ended, by the code of their error; ok, or cancelled when the client left.",
            labels=[*labels, "code"],
        )
        running = GaugeMetricFamily("tailrace_requests_in_progress", "Requests at the moment.", labels=labels)
        received = CounterMetricFamily("tailrace_received_bytes", "Bytes of data that arrived.", labels=labels)
        sent = CounterMetricFamily("tailrace_sent_bytes", "Bytes of data that were sent.", labels=labels)
        for names, operation in list(self._operations.items()):
            for code, count in list(operation.codes.items()):
                ended.add_metric([*names, code], count)
            running.add_metric(names, operation.running)
            received.add_metric(names, operation.received)
            sent.add_metric(names, operation.sent)
        return (ended, running, received, sent)

    def describe(self) -> Iterable[Metric]:
        return ()


class _WithoutTimesOfCreation(CollectorRegistry):
    """Leaves out when each counter was made: a second series for each, which nobody asks for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._real = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._real.collect():
            if metric.type in ("counter", "histogram"):
                metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _LookedUp(Collector):
    """What the server holds at the moment."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        figures = self._figures()
        values = [
            ("tailrace_ready", "Whether the server takes new work: 1, or 0.", int(figures.ready)),
            ("tailrace_uploads_open", "Uploads with an uploader.", figures.uploads_open),
            ("tailrace_uploads_waiting", "Uploads whose uploader may come back.", figures.uploads_waiting),
            ("tailrace_resources_in_use", "Resources that are read or written.", figures.resources_used),
        ]
        if figures.storage_bytes is not None:
            values.append(("tailrace_storage_bytes", "Bytes of all resources.", figures.storage_bytes))
        for name, text, value in values:
            yield GaugeMetricFamily(name, text, value=value)
        build = GaugeMetricFamily("tailrace_build_info", "Which software this is; always 1.", labels=["version"])
        build.add_metric([importlib.metadata.version("tailrace-impl-server")], 1)
        yield build

    def describe(self) -> Iterable[Metric]:
        return ()
