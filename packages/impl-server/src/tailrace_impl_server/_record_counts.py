"""What a server counts of its record streams, in the form that Prometheus reads.

Labels are names of collections, sources and queues as they are declared, so there are no more than of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tailrace_common_api import QueueFigures


class RecordCounts(Collector):
    """Counts the record streams of one server. Written by its event loop and read by scrapes, in any thread."""

    def __init__(self) -> None:
        """Begin at zero."""
        # Plain numbers, since they change with each group of records.
        self._staged: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._bulks: Counter[tuple[str, str]] = Counter()
        self._open: Counter[str] = Counter()
        self._queries: Counter[str] = Counter()
        self._queues: dict[str, QueueFigures] = {}

    def staged(self, target: str, records: int) -> None:
        """Count records of bulks that were staged for a collection or a queue."""
        self._staged[target] += records

    def bulk_began(self, target: str) -> None:
        """Count a bulk that runs."""
        self._open[target] += 1

    def bulk_ended(self, target: str, outcome: str) -> None:
        """Count a bulk that ran; ``outcome`` says how it ended."""
        self._open[target] -= 1
        self._bulks[target, outcome] += 1

    def query_began(self, source: str) -> None:
        """Count a query."""
        self._queries[source] += 1

    def sent(self, source: str, records: int) -> None:
        """Count records that a query gave."""
        self._sent[source] += records

    def queue(self, figures: QueueFigures) -> None:
        """Take the newest figures of a queue."""
        self._queues[figures.queue] = figures

    def collect(self) -> Iterable[Metric]:
        staged = CounterMetricFamily(
            "tailrace_records_staged", "Records of bulks that were validated and staged.", labels=["target"]
        )
        for name, records in list(self._staged.items()):
            staged.add_metric([name], records)
        bulks = CounterMetricFamily(
            "tailrace_bulks",
            "Bulks that ended: committed, refused for their records, failed, or cancelled by their client.",
            labels=["target", "outcome"],
        )
        for (name, outcome), count in list(self._bulks.items()):
            bulks.add_metric([name, outcome], count)
        running = GaugeMetricFamily("tailrace_bulks_open", "Bulks at the moment.", labels=["target"])
        for name, count in list(self._open.items()):
            running.add_metric([name], count)
        queries = CounterMetricFamily("tailrace_queries", "Queries that began.", labels=["source"])
        for name, count in list(self._queries.items()):
            queries.add_metric([name], count)
        sent = CounterMetricFamily("tailrace_records_sent", "Records that queries gave.", labels=["source"])
        for name, records in list(self._sent.items()):
            sent.add_metric([name], records)
        return (staged, bulks, running, queries, sent, *self._queue_metrics())

    def _queue_metrics(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily(
            "tailrace_queue_records",
            "Records of a queue: ready for a consumer, delayed, in flight with one, or dead.",
            labels=["queue", "state"],
        )
        consumers = GaugeMetricFamily("tailrace_queue_consumers", "Consumers that are connected.", labels=["queue"])
        stalled = GaugeMetricFamily(
            "tailrace_queue_consumers_stalled", "Consumers without credit while there is work.", labels=["queue"]
        )
        for name, figures in list(self._queues.items()):
            for state in ("ready", "delayed", "in_flight", "dead"):
                depth.add_metric([name, state], getattr(figures, state))
            consumers.add_metric([name], figures.consumers)
            stalled.add_metric([name], figures.stalled)
        return (depth, consumers, stalled)

    def describe(self) -> Iterable[Metric]:
        return ()
