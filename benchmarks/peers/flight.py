"""Arrow Flight, with a server in Python and its own client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from peers.driven_peer import DrivenPeer, missing_python
from peers.processes import PYTHON, WITHOUT_POOL, ClientProcess, PeerProcess


class FlightStoring(DrivenPeer):
    """pyarrow's Flight server, whose handler in Python does the work that a server of uploads has to do.

    Messages of 1 MiB: a batch with one column of bytes around the piece, without a copy on either side. The handler
    hashes with XXH3-128, writes to a new file, compares with the client's hash and syncs before it answers; the client
    hashes both ways. A download reads the file in pieces of 1 MiB. Malloc is tuned as ours. A line is a batch of its
    own; the file is buffered by 1 MiB.
    """

    name: ClassVar[str] = "Arrow Flight"
    does_less: ClassVar[str] = "the same work, but no live readers, no resuming, one hash at the end"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download", "lines"})
    same_work: ClassVar[frozenset[str]] = supports
    _program: ClassVar[str] = "flight_client"
    _options: ClassVar[tuple[str, ...]] = ()
    _environment: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_python("pyarrow")

    async def _start(self) -> ClientProcess:
        stored = self._scratch / "stored"
        stored.mkdir()
        return await self._start_server("--folder", str(stored), *self._options)

    async def _start_server(self, *arguments: str) -> ClientProcess:
        command: list[str | Path] = [PYTHON, "-m", "peers.programs.flight_server", *arguments]
        server = PeerProcess(command, self.log("server"), environment=self._environment)
        await self._serve(server)
        settings = {"port": json.loads(await server.read_line())["port"], "hashes": bool(arguments)}
        return ClientProcess.python(self._program, settings, self.log("client"), environment=self._environment)


class FlightWithoutPool(FlightStoring):
    """The same, its core told the same about its threads as ours: a setting that Flight's documents do not name."""

    name: ClassVar[str] = "Arrow Flight, without its core's threads"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download"})
    same_work: ClassVar[frozenset[str]] = supports
    _environment: ClassVar[Mapping[str, str]] = WITHOUT_POOL


class FlightFollowing(FlightStoring):
    """The same with what live readers and resuming need, so that it can be followed: the work that Tailrace does.

    Each batch has the hash of all bytes up to its end, which the handler compares before it writes, enters in a journal
    and wakes followers; every 4 ms it announces what is stored to the uploader, who keeps what is not announced. A
    follower gets the last batches from memory, all others from the file, and compares the hash up to the end of each.
    Continuing itself is not written, since none is timed.
    """

    name: ClassVar[str] = "Arrow Flight, followed"
    does_less: ClassVar[str] = "the same work, in a handler written for this; resuming is prepared only"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "follow", "lines", "latencies"})
    same_work: ClassVar[frozenset[str]] = supports
    _program: ClassVar[str] = "flight_following_client"
    _options: ClassVar[tuple[str, ...]] = ("--followed",)


class FlightFollowingWithoutPool(FlightFollowing):
    """The same, its core told the same about its threads as ours."""

    name: ClassVar[str] = "Arrow Flight, followed, without its core's threads"
    _environment: ClassVar[Mapping[str, str]] = WITHOUT_POOL


class FlightCounting(FlightStoring):
    """The same without any work: the handler counts bytes; a download sends one batch from memory, by C++ alone."""

    name: ClassVar[str] = "Arrow Flight, counting only"
    does_less: ClassVar[str] = "no hash, nothing stored, no live readers, no resuming"
    same_work: ClassVar[frozenset[str]] = frozenset()

    async def _start(self) -> ClientProcess:
        return await self._start_server()
