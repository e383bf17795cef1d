"""What Tailrace wants to reach, beside what has been measured: goals that must be met, and ones that are far off.

Throughput is stated as a ratio to a raw blocking loopback socket. Where those ratios were set, blocking sockets that do
the work of an upload by hand reached 0.79 to 0.92 of it; how much they reach depends on how much of what the raw socket
moves stays in the caches of a machine. Each such goal is therefore stated a second time, as a share of what is reached
by hand directly before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import peers
from cases import DATABASES, GIGABYTE, TITLES, TRANSPORTS, Sample
from peer_rows import COMPARED, row_of
from peers.flight import FlightStoring, FlightWithoutPool
from peers.nginx import Nginx
from report import NOTHING, Report, figure
from setting_rows import ADDED

Measured = Callable[[Report], list[float]]
_BY_HAND = 0.85
"""What blocking sockets by hand reached of the raw socket where the goals were set: the middle of 0.79 to 0.92."""


@dataclass(frozen=True)
class Goal:
    """A figure that is wanted."""

    what: str
    measured: Measured
    """Returns the figure of each round in which there is one."""
    must: float | None
    """What has to be reached; ``None`` where only the far goal is stated."""
    far: float | None
    """What would be remarkable; ``None`` where nothing beyond the former is stated."""
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


def shares_of(id: str) -> Measured:
    """The ratio of a row to what is reached by hand directly before it."""
    return lambda report: report.shares(id)


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
    """The ratio of a row to another, directly before that or in the same round."""
    return lambda report: report.factors(id, report.results[other]) if other in report.results else []


def server_time(sample: Sample) -> float:
    """Return the processor time of the server, in s/GB."""
    return sample.server_cpu / (sample.bytes / GIGABYTE)


def to_beside(id: str, other: str) -> Measured:
    """The ratio of a row to another that was measured directly before it."""

    def find(report: Report) -> list[float]:
        return [1 / ahead for ahead in report.factors(other, report.results[id])] if id in report.results else []

    return find


def to_socket_or_disk(id: str) -> Measured:
    """The ratio of a row to the slower of the raw socket directly before it and a plain write of the same round."""

    def find(report: Report) -> list[float]:
        written = report.values("raw.write")
        samples = report.results[id].samples if id in report.results else []
        return [sample.value / min(sample.raw, written[sample.round]) for sample in samples if sample.round in written]

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


def _throughput() -> list[Goal]:
    """Return the goals of transfers, each that is a ratio to the raw socket also as a share of what is done by hand."""
    goals = []

    def state(what: str, row: str, must: float, far: float, by_hand: str, shares: tuple[float, float]) -> None:
        goals.append(Goal(f"{what}, to raw", to_raw(row), must, far, floor=to_raw(by_hand)))
        goals.append(Goal("– its share of what is reached by hand", shares_of(row), *shares))

    def share(must: float, far: float) -> tuple[float, float]:
        return round(must / _BY_HAND, 2), round(far / _BY_HAND, 2)

    up, down = {"ws": (0.45, 0.65), "grpc": (0.28, 0.42)}, {"ws": (0.50, 0.75), "grpc": (0.30, 0.45)}
    followed = {"ws": (0.20, 0.30), "grpc": (0.14, 0.20)}
    for transport in reversed(TRANSPORTS):
        name = TITLES[transport]
        uploads = share(*up[transport])
        warm = "floor.upload_warm"
        state(f"{name} upload to a warm file", f"{transport}.upload_warm", *up[transport], warm, uploads)
        if transport == "ws":
            goals.append(
                Goal(
                    "– its processor time in the server", each("ws.upload_warm", server_time), None, 0.45, "s/GB", True
                )
            )
            new = to_socket_or_disk("ws.upload"), to_socket_or_disk("floor.upload")
            what = "WebSocket upload to a new file, to the slower of raw and a plain write"
            goals.append(Goal(what, new[0], 0.25, 0.45, floor=new[1]))
        else:
            state("– by the blocking client", "grpc.upload_blocking", *up[transport], warm, uploads)
        state(f"{name} download", f"{transport}.download", *down[transport], "floor.download", share(*down[transport]))
        # By hand, too, half of what is uploaded at the same time can be followed, as is stated here.
        state(f"{name} follow while uploading", f"{transport}.follow", *followed[transport], "floor.follow", uploads)
    return goals


def _others() -> list[Goal]:
    """Return what is wanted of downloads beside those of others."""
    flight, nginx, plain = row_of(FlightStoring, "download"), row_of(Nginx, "download"), row_of(Nginx, "plain_download")
    alike = row_of(FlightWithoutPool, "download")
    return [
        Goal("gRPC download, to Arrow Flight's", ratio("grpc.download", flight), 0.8, 1.0),
        Goal("– to Arrow Flight's without its core's threads", ratio("grpc.download", alike), None, 1.0),
        Goal("WebSocket download, to Arrow Flight's", ratio("ws.download", flight), 0.8, 1.0),
        Goal("plain GET, to nginx's", ratio("http.download", plain), 0.75, 1.0),
        # What is hashed besides is work that only the client of the other does.
        Goal("WebSocket download, to nginx's GET whose client hashes", ratio("ws.download", nginx), None, 0.75),
    ]


def _ahead(report: Report) -> list[Goal]:
    """Return that we are ahead of each peer that does as much, and, far off, of the fastest of those that do less."""
    goals = []
    for what in ("upload", "follow", "lines", "latencies"):
        comparison = COMPARED[what]
        for name, ours in comparison.ours.items():
            factors = {}
            for peer in peers.PEERS:
                found = report.results.get(row_of(peer, what))
                if found is not None and (measured := report.factors(ours, found)):
                    factors[peer] = statistics.median(measured)
            same = [peer for peer in factors if what in peer.same_work]
            less = [peer for peer in factors if what not in peer.same_work]
            title = f"{name}, {comparison.title.partition(',')[0].lower()}: ahead of"
            goals += [
                Goal(f"{title} {peer.name}, which does as much", _factors(ours, row_of(peer, what)), 1.0, None)
                for peer in same
            ]
            if less:
                fastest = min(less, key=lambda peer: factors[peer])
                of = _factors(ours, row_of(fastest, what))
                goals.append(Goal(f"{title} {fastest.name}, the fastest of those that do less", of, None, 1.0))
    return goals


def _factors(ours: str, other: str) -> Measured:
    return lambda report: report.factors(ours, report.results[other])


def _goals() -> list[Goal]:
    goals = _throughput()
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
            Goal(
                f"line access adds to the server, {name}",
                more(f"{transport}.text_upload_lines", ADDED),
                *(20, 10),
                "%",
                True,
            ),
            Goal(
                f"8 uploads against 1, {name}",
                to_beside(f"{transport}.uploads_8", f"{transport}.upload_warm"),
                *(0.6, 0.9),
            ),
            Goal(
                f"server killed to next byte at a follower, {name}",
                more(f"{transport}.restart", "from_the_kill"),
                *(1000, 300),
                "ms",
                True,
            ),
        ]
    goals.append(Goal("reopening an upload of 1 TB (quick: 100 GB)", value("reopen"), 2000, 500, "ms", True))
    goals += _others()
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


def section(report: Report) -> list[str]:
    """Return the table of goals; empty if nothing of them was measured."""
    runs = report.each_run()
    rows = [row for goal in [*GOALS, *_ahead(report)] if (row := _row(goal, report, runs))]
    if not rows:
        return []
    several = f" Of each of {len(runs)} runs by itself; *met* is what was met in all of them." if len(runs) > 1 else ""
    return [
        "## Goals",
        "",
        f"Medians of the rounds.{several} *By hand* is what blocking sockets reach that do no more than the bare "
        "work of the same. Ratios to the raw socket are followed by the share of that, and by what the same goal is in "
        "such shares."
        f"{_caches(report)}",
        "",
        "| what | measured | must | | far goal | | by hand |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _row(goal: Goal, report: Report, runs: list[Report]) -> str | None:
    medians = [statistics.median(values) for run in runs if (values := goal.measured(run))]
    if not medians:
        return None
    sign = "≤" if goal.at_most else "≥"
    floor = goal.floor(report) if goal.floor else []
    cells = [goal.what, f"{'; '.join(figure(median) for median in medians)} {goal.unit}".strip()]
    for wanted, missed in ((goal.must, "**missed**"), (goal.far, "missed")):
        cells += [NOTHING if wanted is None else f"{sign} {wanted:g}", _said(goal, medians, wanted, missed)]
    cells.append(figure(statistics.median(floor)) if floor else "")
    return "| " + " | ".join(cells) + " |"


def _said(goal: Goal, medians: list[float], wanted: float | None, missed: str) -> str:
    if wanted is None:
        return ""
    times = sum(bool(goal.met(median, wanted)) for median in medians)
    if times == len(medians):
        return "met"
    return f"{missed}, met {times} of {len(medians)} times" if times else missed


def _caches(report: Report) -> str:
    """Return what the caches do for the raw socket, and what is reached by hand of it without them."""
    figures = []
    for row in ("raw.socket", "raw.memory", "floor.upload_warm", "floor.download"):
        values = list(report.values(row).values())
        if not values:
            return ""
        figures.append(statistics.median(values))
    raw, memory, up, down = figures
    return (
        f" The raw socket moves {figure(raw)} GB/s out of one buffer of 1 MiB into another, and {figure(memory)} from "
        f"64 MiB into 64 MiB; by hand, an upload to a warm file reaches {figure(up / raw)} of the former and "
        f"{figure(up / memory)} of the latter, a download {figure(down / raw)} and {figure(down / memory)}."
    )
