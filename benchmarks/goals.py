"""What Tailrace wants to reach, beside what a run has measured: goals that must be met, and ones that are far off."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from cases import DATABASES, GIGABYTE, TITLES, TRANSPORTS, Sample
from report import NOTHING, Report, figure

Measured = Callable[[Report], list[float]]


@dataclass(frozen=True)
class Goal:
    """A figure that is wanted."""

    what: str
    measured: Measured
    """Returns the figure of each round in which there is one."""
    must: float | None
    """What has to be reached; ``None`` where only the far goal is stated."""
    far: float
    unit: str = ""
    at_most: bool = False
    """Whether the figure shall be at most what is wanted, not at least."""
    floor: Measured | None = None
    """What blocking sockets by hand reach of the same; ``None`` where nothing was written by hand."""

    def met(self, value: float, wanted: float | None) -> bool | None:
        """Return whether a figure is what is wanted."""
        if wanted is None:
            return None
        return value <= wanted if self.at_most else value >= wanted


def to_raw(id: str) -> Measured:
    """The ratio of a row to the raw socket directly before it."""
    return lambda report: report.ratios_to_raw(id)


def each(id: str, take: Callable[[Sample], float]) -> Measured:
    """Something of every sample of a row."""
    return lambda report: [take(sample) for sample in report.results[id].samples] if id in report.results else []


def more(id: str, name: str) -> Measured:
    """A further figure of a row, by its name or the beginning of it."""

    def find(report: Report) -> list[float]:
        samples = report.results[id].samples if id in report.results else []
        return [value for sample in samples for key, value in sample.more.items() if key.startswith(name)]

    return find


def value(id: str) -> Measured:
    """The figure of a row."""
    return each(id, lambda sample: sample.value)


def ratio(id: str, other: str) -> Measured:
    """The ratio of a row to another of the same round."""
    return lambda report: report.ratios_to(id, [other])


def server_time(sample: Sample) -> float:
    """Return the processor time of the server, in s/GB."""
    return sample.server_cpu / (sample.bytes / GIGABYTE)


def to_socket_or_disk(id: str) -> Measured:
    """The ratio of a row to the slower of the raw socket directly before it and a plain write of the same round."""

    def find(report: Report) -> list[float]:
        written = report.values("raw.write")
        samples = report.results[id].samples if id in report.results else []
        return [sample.value / min(sample.raw, written[sample.round]) for sample in samples if sample.round in written]

    return find


def added_by_lines(transport: str) -> Measured:
    """Processor time that line access adds to an upload of lines in the server, in percent, per round."""

    def find(report: Report) -> list[float]:
        with_lines, without = (
            {sample.round: server_time(sample) for sample in report.results[f"{transport}.{name}"].samples}
            if f"{transport}.{name}" in report.results
            else {}
            for name in ("text_upload_lines", "text_upload")
        )
        return [(used / without[number] - 1) * 100 for number, used in with_lines.items() if number in without]

    return find


def added_by_integrity(transport: str) -> Measured:
    """Processor time of hashes and journal beside all else that the server does for an upload, in percent."""

    def find(report: Report) -> list[float]:
        uploads = report.results.get(f"{transport}.upload_warm")
        parts = report.values("integrity")
        if uploads is None:
            return []
        return [
            parts[sample.round] / (server_time(sample) - parts[sample.round]) * 100
            for sample in uploads.samples
            if sample.round in parts
        ]

    return find


def _goals() -> list[Goal]:
    warm, down = to_raw("floor.upload_warm"), to_raw("floor.download")
    goals = [
        Goal("WebSocket upload to a warm file, to raw", to_raw("ws.upload_warm"), 0.45, 0.65, floor=warm),
        Goal("its processor time in the server", each("ws.upload_warm", server_time), None, 0.45, "s/GB", True),
        Goal("WebSocket download, to raw", to_raw("ws.download"), 0.50, 0.75, floor=down),
        Goal(
            "WebSocket upload to a new file, to the slower of raw and a plain write",
            to_socket_or_disk("ws.upload"),
            0.25,
            0.45,
            floor=to_socket_or_disk("floor.upload"),
        ),
        Goal("gRPC upload to a warm file, to raw", to_raw("grpc.upload_warm"), 0.28, 0.42, floor=warm),
        Goal("the same by the blocking client", to_raw("grpc.upload_blocking"), 0.28, 0.42, floor=warm),
        Goal("gRPC download, to raw", to_raw("grpc.download"), 0.30, 0.45, floor=down),
        Goal("WebSocket follow while uploading, to raw", to_raw("ws.follow"), 0.20, 0.30),
        Goal("gRPC follow while uploading, to raw", to_raw("grpc.follow"), 0.14, 0.20),
    ]
    wanted = {"ws": ((0.4, 0.25), (1.0, 0.5)), "grpc": ((0.6, 0.45), (1.2, 0.8))}
    for transport in reversed(TRANSPORTS):
        name = TITLES[transport]
        (p50, far_p50), (p99, far_p99) = wanted[transport]
        row = f"{transport}.latency"
        goals += [
            Goal(f"{name} write to follower, p50", more(row, "p50_ms"), p50, far_p50, "ms", True),
            Goal(f"{name} write to follower, p99", more(row, "p99_ms"), p99, far_p99, "ms", True),
            Goal(f"the same beside 300 MB/s, p99, {name}", more(f"{row}_busy", "p99_ms"), 10, 4, "ms", True),
        ]
    goals += [
        Goal(
            "1,000 followers, the last delivery, p99, WebSocket",
            more("ws.fan_out_1000", "last_p99"),
            50,
            25,
            "ms",
            True,
        ),
        Goal(
            "lines to 100 followers that are behind, WebSocket",
            value("ws.fan_out_coalescing"),
            1000,
            4000,
            "thousand/s",
        ),
    ]
    for transport in reversed(TRANSPORTS):
        name = TITLES[transport]
        row = f"{transport}.idle"
        goals += [
            Goal(f"100-byte lines stored, {name}", value(f"{transport}.lines"), 150, 500, "thousand/s"),
            Goal(f"idle follower in the server, {name}", value(row), 40, 20, "KiB", True),
            Goal(f"more of it after large messages, {name}", more(row, "more_after"), None, 64, "KiB", True),
            Goal(
                f"lines among 200 million (quick: 20 million), server time, {name}",
                more(f"{transport}.line_lookup", "server_ms"),
                *(1.0, 0.3),
                "ms",
                True,
            ),
            Goal(f"hashes and journal add to the server, {name}", added_by_integrity(transport), 10, 5, "%", True),
            Goal(f"line access adds to the server, {name}", added_by_lines(transport), 20, 10, "%", True),
            Goal(f"8 uploads against 1, {name}", ratio(f"{transport}.uploads_8", f"{transport}.upload_warm"), 0.6, 0.9),
            Goal(f"server restarted to next byte, {name}", value(f"{transport}.restart"), 1000, 300, "ms", True),
        ]
    goals.append(Goal("reopening an upload of 1 TB (quick: 100 GB)", value("reopen"), 2000, 500, "ms", True))
    goals += [
        Goal("gRPC upload, to Arrow Flight", ratio("grpc.upload", "peer.arrow-flight.upload"), 1.0, 1.2),
        Goal("gRPC download, to Arrow Flight", ratio("grpc.download", "peer.arrow-flight.download"), 0.8, 1.0),
        Goal("plain HTTP GET, to nginx's", ratio("http.download", "peer.nginx.download"), 0.75, 1.0),
        # What the client hashes besides is work that the other does not do.
        Goal(
            "WebSocket download, hashed on both sides, to it", ratio("ws.download", "peer.nginx.download"), None, 0.75
        ),
    ]
    bulks = {"sqlite": (50, 100), "postgresql": (80, 200)}
    for database, title in DATABASES.items():
        for transport in reversed(TRANSPORTS):
            name = f"{title}, {TITLES[transport]}"
            must, far = bulks[database]
            goals += [
                Goal(f"bulk records, {name}", value(f"{database}.bulk.{transport}"), must, far, "thousand/s"),
                Goal(f"streamed results, {name}", value(f"{database}.query.{transport}"), 200, 1000, "thousand/s"),
                Goal(
                    f"work at credit 50, {name}",
                    value(f"{database}.work.{transport}.50"),
                    *(10_000, 30_000),
                    "deliveries/s",
                ),
            ]
    return goals


GOALS = _goals()
_WORDS = {True: "met", False: "**missed**", None: ""}


def section(report: Report) -> list[str]:
    """Return the table of goals; empty if nothing of them was measured."""
    rows = []
    for goal in GOALS:
        values = goal.measured(report)
        if not values:
            continue
        median = statistics.median(values)
        sign = "≤" if goal.at_most else "≥"
        must = NOTHING if goal.must is None else f"{sign} {goal.must:g}"
        met, far = goal.met(median, goal.must), goal.met(median, goal.far)
        floor = goal.floor(report) if goal.floor else []
        cells = [goal.what, f"{figure(median)} {goal.unit}".strip(), must, _WORDS[met], f"{sign} {goal.far:g}"]
        cells += ["met" if far else "missed", figure(statistics.median(floor)) if floor else ""]
        rows.append("| " + " | ".join(cells) + " |")
    if not rows:
        return []
    return [
        "## Goals",
        "",
        "Medians of the rounds. The raw socket is faster on some machines than on others by more than everything else "
        "is, so ratios to it are to be compared on one machine only. *By hand* is what blocking sockets reach that do "
        "no more than the bare work: what is wanted above that cannot be had on this machine.",
        "",
        "| what | measured | must | | far goal | | by hand |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
