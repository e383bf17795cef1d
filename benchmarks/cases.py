"""The rows of the suite: what each measures, and what it has measured.

A row is a function under :func:`case` (or :func:`transport_case`, which makes one of each transport); it does its work
under :meth:`Run.meter` and returns a :class:`Sample`. A module of rows is imported by `run.py`, and that is all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

from fresh_memory import refresh_memory
from loops import run_coroutine
from processes import OURSELVES, reset_peaks, usage_of
from server import ServerProcess, keep_byte_code

T = TypeVar("T")

TRANSPORTS = ("grpc", "ws")
TITLES = {"grpc": "gRPC", "ws": "WebSocket"}
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
MEBIBYTE = 1 << 20
GIGABYTE = 1e9
THROUGHPUT = "GB/s"
"""Unit of the rows that move bytes."""
_MEMORY_BESIDE = 256 * MEBIBYTE
"""What a transfer takes besides its bytes: buffers, and what the recent end of a resource is kept in."""
HERE = Path(__file__).parent
NO_FIGURES: Mapping[str, float] = MappingProxyType({})

LIMITS = "Limits of this machine"
UPLOAD = "Upload"
DOWNLOAD = "Download"
LINES = "Lines"
LATENCY = "Latency of a follower"
FAN_OUT = "Many followers"
CONNECTIONS = "Connections"
MANY = "Very much of something"
SETTINGS = "What settings cost"
RECORDS = "Records"
PEERS = "Peers: "
"""How the headings of the rows of others begin, which are measured next to ours of the same name."""
GROUPS = (
    LIMITS,
    *(UPLOAD, PEERS + UPLOAD),
    *(DOWNLOAD, PEERS + DOWNLOAD),
    *(LINES, PEERS + LINES),
    *(LATENCY, PEERS + LATENCY),
    FAN_OUT,
    CONNECTIONS,
    MANY,
    SETTINGS,
    RECORDS,
)
"""Headings of tables, in the order in which their rows are measured."""
_MOVING = (LIMITS, UPLOAD, DOWNLOAD, LINES, LATENCY, SETTINGS, RECORDS)
"""Headings of rows that move bytes, lines or records, or stand beside such."""


@dataclass
class Sample:
    """One measurement of a row."""

    value: float
    """In the row's unit."""
    seconds: float = 0.0
    """Wall time of the timed part."""
    bytes: int = 0
    """Bytes that were moved in it; 0 where something else is counted."""
    count: int = 0
    """Things that were done in it, if not bytes: lines, deliveries, requests."""
    server_cpu: float = 0.0
    """Processor time of the server in it, in seconds."""
    client_cpu: float = 0.0
    """Processor time of the clients in it, in seconds."""
    server_peak: int = 0
    """Largest resident memory of the server in it, in bytes."""
    client_peak: int = 0
    """Largest resident memory of the clients in it, in bytes."""
    more: dict[str, float] = field(default_factory=dict)
    """Further figures by name, which ends with the unit."""
    round: int = 0
    """Round in which it was measured, from 0."""
    raw: float = 0.0
    """GB/s of the raw socket directly before."""
    floor: float = 0.0
    """What was reached by hand directly before, where somebody does this by hand."""
    beside: dict[str, float] = field(default_factory=dict)
    """Figures of other rows directly before, by their ids: of those that are measured beside this one."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int
    size: int
    """Bytes of a transfer."""
    lines: int
    """Lines of the rows of small writes."""
    latencies: int
    """Writes of which the latency is taken, per sample."""
    huge_lines: int
    """Lines of the resource in which lines are looked up."""
    connections: int
    """Connections that are held idle."""
    records: int
    """Records of a bulk."""
    results: int
    """Records of a streamed result."""
    deliveries: int
    """Most deliveries of work per sample."""
    slow_rounds: int
    """Most rounds of rows that take long."""
    resources: int
    """Stored resources that a server starts on."""
    interrupted: int
    """Bytes of an upload that is reopened."""
    peer_lines: int
    """Lines that peers are given, some of which take each with a request of its own."""
    prepared: bool
    """Whether rows are done once before they count, and find memory that was used a moment ago."""


FULL = Scale(
    rounds=5,
    size=512 * MEBIBYTE,
    lines=300_000,
    latencies=500,
    huge_lines=200_000_000,
    connections=500,
    records=200_000,
    results=1_000_000,
    deliveries=10_000,
    slow_rounds=3,
    resources=10_000,
    interrupted=10**12,
    peer_lines=2_000,
    prepared=True,
)
QUICK = Scale(
    rounds=3,
    size=128 * MEBIBYTE,
    lines=100_000,
    latencies=200,
    huge_lines=20_000_000,
    connections=200,
    records=50_000,
    results=200_000,
    deliveries=3_000,
    slow_rounds=1,
    resources=2_000,
    interrupted=10**11,
    peer_lines=1_000,
    # Twice the time, for figures that nobody compares.
    prepared=False,
)


class Meter:
    """Takes the time of a block, and what the processes on both sides used in it."""

    def __init__(self, server: tuple[int, ...], clients: tuple[int, ...]) -> None:
        self._server = server
        self._clients = clients
        self.seconds = 0.0

    def __enter__(self) -> Self:
        reset_peaks(self._server + self._clients)
        self._before = usage_of(*self._server), usage_of(*self._clients)
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begin
        self._after = usage_of(*self._server), usage_of(*self._clients)

    def sample(self, value: float, *, bytes: int = 0, count: int = 0, more: Mapping[str, float] = NO_FIGURES) -> Sample:
        """Return a sample with what was used, and a value."""
        (server, clients), (server_before, clients_before) = self._after, self._before
        return Sample(
            value=value,
            seconds=self.seconds,
            bytes=bytes,
            count=count,
            server_cpu=server.cpu - server_before.cpu,
            client_cpu=clients.cpu - clients_before.cpu,
            server_peak=server.peak,
            client_peak=clients.peak,
            more=dict(more),
        )

    def throughput(self, size: int, more: Mapping[str, float] = NO_FIGURES) -> Sample:
        """Return a sample in GB/s."""
        return self.sample(size / self.seconds / GIGABYTE, bytes=size, more=more)

    def rate(self, count: int, per: float = 1e3, more: Mapping[str, float] = NO_FIGURES) -> Sample:
        """Return a sample in thousands per second, or in another unit of that many."""
        return self.sample(count / self.seconds / per, count=count, more=more)


class VoidSampleError(RuntimeError):
    """What a row is measured beside was not as the row says; it may be when the row is measured again."""


class Run:
    """What the rows of a run share: servers, and what is stored on them."""

    def __init__(self, scale: Scale, scratch: Path) -> None:
        self.scale = scale
        self.scratch = scratch
        self.kept: dict[str, Any] = {}
        """What a row keeps for its next rounds, or for others, by a name that begins with the module's."""
        self.stack = ExitStack()
        """Ends with the run."""
        self._servers: dict[str, ServerProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def server(self, profile: str = "plain") -> ServerProcess:
        """Return the server of a profile (see :data:`PROFILES`); it is started when it is first asked for."""
        if profile not in self._servers:
            self._servers[profile] = self.stack.enter_context(self.fresh_server(profile))
        return self._servers[profile]

    def fresh_server(self, profile: str = "plain", data: Path | None = None) -> ServerProcess:
        """Return a server of one's own, not started."""
        settings, program = PROFILES[profile]
        folder = data or self.scratch / f"server-{len(list(self.scratch.iterdir()))}-{profile}"
        settings = {**keep_byte_code(self.scratch), **settings}
        return ServerProcess(folder, settings=settings, program=program, log=self.scratch / "log")

    def measure(self, case: Case, *, rested: bool = True) -> Sample:
        """Measure a row once.

        With ``rested`` one that moves something is done once more before that, and not counted. One that writes a new
        file finds memory for it that was used a moment ago.
        """
        if not self.scale.prepared:
            return case.measure(self)
        if rested and case.group.removeprefix(PEERS) in _MOVING:
            case.measure(self)
        if case.new_file:
            refresh_memory(self.scratch, self.scale.size + _MEMORY_BESIDE)
        return case.measure(self)

    def url(self, transport: str, profile: str = "plain") -> str:
        """Return where the server of a profile is."""
        return self.server(profile).urls[transport]

    def meter(self, profile: str | None = "plain", clients: tuple[int, ...] = OURSELVES) -> Meter:
        """Return a meter of the server of a profile, or of none, and of the processes of the clients."""
        return Meter(() if profile is None else (self.server(profile).pid,), clients)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on an event loop of its own, of the kind that the command line uses."""
        return run_coroutine(work)

    def keep(self, name: str, make: Callable[[], T]) -> T:
        """Return what is kept under a name; it is made when it is first asked for."""
        if name not in self.kept:
            self.kept[name] = make()
        found: T = self.kept[name]
        return found


PROFILES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "plain": ({}, ("-m", "tailrace")),
    "fsync": ({"TAILRACE_STORAGE_DURABILITY": "fsync"}, ("-m", "tailrace")),
    # The bytes of resources go into one warm file instead of new ones; everything else is as always.
    "warm": ({}, (str(HERE / "warm_server.py"),)),
}
"""Settings and program of servers, by name."""

Measure = Callable[[Run], Sample]


@dataclass(frozen=True)
class Case:
    """A row of the suite."""

    id: str
    """Stable name, such as ``ws.upload``."""
    title: str
    group: str
    """Heading of the table that it stands in."""
    unit: str
    measure: Measure
    lower_is_better: bool = False
    slow: bool = False
    """Whether it takes so long that it is measured in fewer rounds."""
    floor: str | None = None
    """Id of the row whose figure is the attainable limit; one of the machine is measured directly before, too."""
    patience: float | None = None
    """Seconds; a row that takes longer is measured once."""
    new_file: bool = False
    """Whether it writes a large new file, which takes memory."""
    beside: tuple[str, ...] = ()
    """Ids of rows that this one is compared with, and which are measured directly before it once more."""


CASES: dict[str, Case] = {}
"""All rows, by id."""


def case(
    id: str,
    title: str,
    *,
    group: str,
    unit: str = THROUGHPUT,
    lower_is_better: bool = False,
    slow: bool = False,
    floor: str | None = None,
    patience: float | None = None,
    new_file: bool = False,
    beside: Iterable[str] = (),
) -> Callable[[Measure], Measure]:
    """Register a function as a row; see :class:`Case`."""

    def register(measure: Measure) -> Measure:
        if id in CASES:
            raise ValueError(f"there are two rows {id}")
        CASES[id] = Case(
            *(id, title, group, unit, measure, lower_is_better, slow, floor),
            patience=patience,
            new_file=new_file,
            beside=tuple(beside),
        )
        return measure

    return register


def transport_case(
    name: str,
    title: str,
    *,
    group: str,
    unit: str = THROUGHPUT,
    lower_is_better: bool = False,
    slow: bool = False,
    floor: str | None = None,
    new_file: bool = False,
    beside: Iterable[str] = (),
) -> Callable[[Callable[[Run, str], Sample]], Callable[[Run, str], Sample]]:
    """Register a function that takes a transport as a row of each; ``beside`` are names of rows of the same one."""

    def register(measure: Callable[[Run, str], Sample]) -> Callable[[Run, str], Sample]:
        for transport in TRANSPORTS:
            bound = partial(_measure_transport, measure, transport)
            case(
                f"{transport}.{name}",
                f"{TITLES[transport]} {title}",
                group=group,
                unit=unit,
                lower_is_better=lower_is_better,
                slow=slow,
                floor=floor,
                new_file=new_file,
                beside=[f"{transport}.{other}" for other in beside],
            )(bound)
        return measure

    return register


def _measure_transport(measure: Callable[[Run, str], Sample], transport: str, run: Run) -> Sample:
    return measure(run, transport)


def milliseconds(times: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the maximum of times in seconds, in milliseconds."""
    ordered = sorted(times)
    picked = {"p50_ms": ordered[len(ordered) // 2], "p99_ms": ordered[int(len(ordered) * 0.99)], "max_ms": ordered[-1]}
    return {name: value * 1e3 for name, value in picked.items()}


@dataclass
class Result:
    """A row with its samples."""

    id: str
    title: str
    group: str
    unit: str
    lower_is_better: bool
    floor: str | None
    samples: list[Sample] = field(default_factory=list)
    problem: str | None = None
    """Why it was not, or not always, measured."""
    voids: int = 0
    """How often it was measured again, because of :class:`VoidSampleError`."""

    @classmethod
    def of(cls, case: Case) -> Result:
        """Return the result of a row that was not measured yet."""
        return cls(case.id, case.title, case.group, case.unit, case.lower_is_better, case.floor)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Result:
        """Return what :func:`dataclasses.asdict` was made of."""
        return cls(**{**fields, "samples": [Sample(**sample) for sample in fields["samples"]]})

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
