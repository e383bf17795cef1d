"""Rows of what users would pick instead, each driven by its own client, next to ours in the same rounds."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

import peers
from cases import DOWNLOAD, GIGABYTE, LATENCY, LINES, PEERS, UPLOAD, Meter, Run, Sample, case, milliseconds
from peers import Peer

T = TypeVar("T")

COMPARED = {
    "upload": (UPLOAD, "upload"),
    "download": (DOWNLOAD, "download"),
    "follow": (DOWNLOAD, "follow"),
    "lines": (LINES, "lines"),
    "latencies": (LATENCY, "latency"),
}
"""What a peer may be measured at: the heading, and the name of our row of the same work."""


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
    elif what == "download":
        if running.handle is None:
            _, running.handle = running.wait(peer.upload(size)) or (0, None)
        assert running.handle is not None
        seconds, meter, ended = running.timed(peer.download(running.handle, size, verify=False))
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
    for what, (group, _) in COMPARED.items():
        for make in peers.PEERS:
            if make.name not in missing and what in make.supports:
                unit = {"lines": "thousand/s", "latencies": "ms"}.get(what, "GB/s")
                case(
                    f"peer.{slug(make.name)}.{what}",
                    f"{make.name}: {what}",
                    group=PEERS + group,
                    unit=unit,
                    lower_is_better=what == "latencies",
                    slow=True,
                )(partial(_measure, make, what))
    return missing


def notes() -> dict[str, str]:
    """Return what each peer does less than Tailrace, by the name in its ids."""
    return {slug(make.name): make.does_less for make in peers.PEERS}
