"""Rows of what users would pick instead, each driven by its own client, next to ours in the same rounds."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import peers
from cases import (
    DOWNLOAD,
    GIGABYTE,
    LATENCY,
    LINES,
    PEERS,
    THROUGHPUT,
    TITLES,
    TRANSPORTS,
    UPLOAD,
    Meter,
    Run,
    Sample,
    case,
    milliseconds,
)
from peers import Peer

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds; a row of a peer that takes longer is measured once in a run."""


@dataclass(frozen=True)
class Comparison:
    """What peers may be measured at, beside rows of ours."""

    group: str
    """Heading of the rows."""
    title: str
    """What is compared."""
    ours: dict[str, str]
    """Ids of our rows of the same work, by what they go over."""
    short: str
    """The same in few words, with the unit."""


def _over_each(name: str) -> dict[str, str]:
    return {TITLES[transport]: f"{transport}.{name}" for transport in TRANSPORTS}


COMPARED = {
    "upload": Comparison(UPLOAD, "Upload, new file", _over_each("upload"), "upload, GB/s"),
    "download": Comparison(DOWNLOAD, "Download, checked by the client", _over_each("download"), "download, GB/s"),
    "plain_download": Comparison(DOWNLOAD, "Plain GET, by the same client", {"HTTP": "http.download"}, "GET, GB/s"),
    "follow": Comparison(DOWNLOAD, "Follow while uploading", _over_each("follow"), "follow, GB/s"),
    "lines": Comparison(LINES, "Lines of 100 bytes, a write each", _over_each("lines"), "lines, thousand/s"),
    "latencies": Comparison(
        LATENCY, "Write of a line to its arrival, median", _over_each("latency"), "line to reader, ms"
    ),
}
"""All of it, by the name that peers have for it."""


def side_by_side(peer: type[Any], what: str) -> bool:
    """Whether ours is measured directly before, once more, in every round.

    For transfers, which take less time than the machine keeps its pace, where others do as much, or where both are read
    by the same client.
    """
    return what == "plain_download" or (what in ("upload", "download", "follow") and what in peer.same_work)


def slug(name: str) -> str:
    """Return the name of a peer as a part of ids."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class _Running:
    """A peer that runs as long as the run does."""

    def __init__(self, run: Run, make: type[Any]) -> None:
        self.peer: Peer = make(run.scratch)
        # Not uvloop's loop: it starts processes as gRPC, which is in this one, cannot bear.
        self._runner = run.stack.enter_context(asyncio.Runner())
        run.stack.callback(lambda: self.wait(self.peer.__aexit__(None, None, None)))
        self.wait(self.peer.__aenter__())
        self.handle: str | None = None

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def timed(self, work: Coroutine[Any, Any, T | None]) -> tuple[T, Meter, float]:
        """Do something; return what came of it, and what was used: by processes, and by clients that have ended."""
        before = os.times()
        with Meter(tuple(self.peer.server_pids), tuple(self.peer.client_pids)) as meter:
            found = self.wait(work)
        after = os.times()
        if found is None:
            raise AssertionError(f"{self.peer.name} does not do what it says it does")
        ended = after.children_user + after.children_system - before.children_user - before.children_system
        return found, meter, ended


def _measure(make: type[Any], what: str, run: Run) -> Sample:
    running = run.keep(f"peer.{make.name}", lambda: _Running(run, make))
    peer, size, scale = running.peer, run.scale.size, run.scale
    if what == "upload":
        (seconds, handle), meter, ended = running.timed(peer.upload(size))
        if running.handle is not None:
            running.wait(peer.delete(running.handle))
        running.handle = handle
        sample = meter.sample(size / seconds / GIGABYTE, bytes=size)
    elif what in ("download", "plain_download"):
        if running.handle is None:
            _, running.handle = running.wait(peer.upload(size)) or (0, None)
        assert running.handle is not None
        seconds, meter, ended = running.timed(peer.download(running.handle, size, verify=what == "download"))
        sample = meter.sample(size / seconds / GIGABYTE, bytes=size)
    elif what == "follow":
        seconds, meter, ended = running.timed(peer.follow(size))
        sample = meter.sample(size / seconds / GIGABYTE, bytes=size)
    elif what == "lines":
        seconds, meter, ended = running.timed(peer.lines(scale.peer_lines))
        sample = meter.sample(scale.peer_lines / seconds / 1e3, count=scale.peer_lines)
    else:
        times, meter, ended = running.timed(peer.latencies(scale.latencies // 2, 0.002))
        figures = milliseconds(times)
        sample = meter.sample(figures["p50_ms"], count=len(times), more=figures)
    sample.client_cpu += ended
    return sample


def register() -> dict[str, str]:
    """Register the rows of all peers that are installed; return why the others are not, by name."""
    missing = peers.missing()
    for what, comparison in COMPARED.items():
        for make in peers.PEERS:
            if make.name not in missing and what in make.supports:
                unit = {"lines": "thousand/s", "latencies": "ms"}.get(what, THROUGHPUT)
                beside = side_by_side(make, what)
                case(
                    row_of(make, what),
                    f"{make.name}: {what.replace('_', ' ')}",
                    group=PEERS + comparison.group,
                    unit=unit,
                    lower_is_better=what == "latencies",
                    slow=not beside,
                    patience=PATIENCE,
                    new_file=what in ("upload", "follow"),
                    beside=comparison.ours.values() if beside else (),
                )(partial(_measure, make, what))
    return missing


def row_of(peer: type[Any], what: str) -> str:
    """Return the id of a row of a peer."""
    return f"peer.{slug(peer.name)}.{what}"
