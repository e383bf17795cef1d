"""What `tailrace bench` measures on a server, and what it leaves there: nothing, if it may delete."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tailrace._connect import connect
from tailrace._progress import transfer_progress
from tailrace_common_api import DeadlineExceeded, IntegrityError, ResourceState, Status, TailraceError

if TYPE_CHECKING:
    from tailrace_client_upload_api import UploadSession
    from tailrace_impl_common import ConnectedClient

_NAME = "tailrace-bench"
_PIECE = os.urandom(1024 * 1024)
_LINE = b"x" * 99 + b"\n"
_PATIENCE = 30.0
"""Longest time that a line may take to its reader, and that deleting may take, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much is measured."""

    size: int
    """Bytes of a transfer."""
    lines: int
    """Lines of 100 bytes that are written as fast as possible."""
    latencies: int
    """Lines whose time to a reader is taken."""
    rounds: int
    """How often each of them is measured."""


@dataclass
class Row:
    """What was measured, round by round."""

    name: str
    """Of ``upload``, ``download``, ``lines`` and ``latency``."""
    unit: str
    values: list[float] = field(default_factory=list)
    """In the unit; of latencies the medians."""
    processor: list[float] = field(default_factory=list)
    """Processor time of this program, in seconds per gigabyte; empty where no bulk is moved."""
    p99: list[float] = field(default_factory=list)
    """Of latencies."""

    def fields(self) -> dict[str, object]:
        """Return the row as the JSON object that the command line prints."""
        found: dict[str, object] = {"row": self.name, "unit": self.unit, "median": _rounded(self.values)}
        found |= {"min": round(min(self.values), 4), "max": round(max(self.values), 4)}
        if self.processor:
            found["client_processor_seconds_per_gigabyte"] = _rounded(self.processor)
        if self.p99:
            found["p99"] = _rounded(self.p99)
        return found

    def text(self, amounts: Amounts) -> str:
        """Return the row as a line for people."""
        what = {
            "upload": f"upload of {amounts.size:,} bytes",
            "download": f"download of {amounts.size:,} bytes",
            "lines": f"{amounts.lines:,} lines of 100 bytes",
            "latency": "write of a line to its reader",
        }[self.name]
        spread = f"{_figure(min(self.values))} to {_figure(max(self.values))}"
        more = f"  client {_rounded(self.processor):.2f} s/GB" if self.processor else ""
        more += f"  p99 {_figure(statistics.median(self.p99))}" if self.p99 else ""
        return f"  {what:<34}{_figure(statistics.median(self.values)):>7} {self.unit:<11}({spread}){more}"


@dataclass
class Findings:
    """What was measured on one server."""

    url: str
    rows: dict[str, Row] = field(default_factory=dict)
    deleted: int = 0
    """Resources that were made and deleted again."""
    left: dict[str, TailraceError] = field(default_factory=dict)
    """References of resources that could not be deleted, and why."""

    def row(self, name: str, unit: str) -> Row:
        """Return a row, which is made when it is first asked for."""
        return self.rows.setdefault(name, Row(name, unit))


class Benchmark:
    """Measures one server; :attr:`findings` are there also when it was ended before its time."""

    def __init__(self, url: str, amounts: Amounts, context: str | None = None, *, config: str | None = None) -> None:
        """Prepare.

        Args:
            url: The server.
            amounts: How much is measured.
            context: The one that is to own the resources; ``None`` for none.
            config: Settings file; ``None`` for the usual one.
        """
        self.findings = Findings(url)
        self.amounts = amounts
        self._context = context
        self._config = config
        self._made: list[str] = []

    async def run(self) -> None:
        """Measure everything, and delete what that made.

        Raises:
            TailraceError: The server refuses something or cannot be reached.
        """
        url = self.findings.url
        async with connect(url, config=self._config) as client, connect(url, config=self._config) as reader:
            try:
                for number in range(self.amounts.rounds):
                    await self._round(client, reader, number)
            finally:
                # Whatever has ended the rounds.
                await self._clear(client)

    async def _round(self, client: ConnectedClient, reader: ConnectedClient, number: int) -> None:
        where = f"{self.findings.url}, round {number + 1} of {self.amounts.rounds}"
        reference = await self._upload(client, where)
        await self._download(reader, reference, where)
        await self._lines(client)
        await self._latencies(client, reader)
        await self._clear(client)

    async def _upload(self, client: ConnectedClient, where: str) -> str:
        size, written = self.amounts.size, 0
        async with self._session(client, lines=False) as session:
            with transfer_progress(f"{where}: upload", size) as report, self._timed("upload"):
                while written < size:
                    piece = memoryview(_PIECE)[: size - written]
                    await session.write(piece)
                    written += len(piece)
                    report(written)
                await session.finish()
        _check(session.status, size)
        return session.reference

    async def _download(self, client: ConnectedClient, reference: str, where: str) -> None:
        size, received = self.amounts.size, 0
        async with client.open(reference) as resource:
            await resource.status()
            with transfer_progress(f"{where}: download", size) as report, self._timed("download"):
                async with aclosing(resource.chunks()) as chunks:
                    async for chunk in chunks:
                        received += len(chunk.data)
                        report(received)
        if received != size:
            raise IntegrityError(offset=received, problem=f"{received} bytes of {size} arrived")

    async def _lines(self, client: ConnectedClient) -> None:
        count = self.amounts.lines
        async with self._session(client, lines=True) as session:
            begin = time.perf_counter()
            for _ in range(count):
                await session.write(_LINE)
            await session.finish()
            seconds = time.perf_counter() - begin
        _check(session.status, count * len(_LINE))
        if session.status.lines != count:
            raise IntegrityError(offset=0, problem=f"the server counts {session.status.lines} lines of {count}")
        self.findings.row("lines", "thousand/s").values.append(count / seconds / 1e3)

    async def _latencies(self, client: ConnectedClient, reader: ConnectedClient) -> None:
        times = []
        async with (
            self._session(client, lines=True) as session,
            reader.open(session.reference) as resource,
            aclosing(resource.follow()) as arriving,
        ):
            # The first one waits for the reader to be there, and is not counted.
            for _ in range(self.amounts.latencies + 1):
                begin = time.perf_counter()
                await session.write(_LINE)
                arrived = await _within_patience(anext(arriving))
                times.append(time.perf_counter() - begin)
                if arrived != _LINE:
                    raise IntegrityError(offset=0, problem="the reader got something else than was written")
            await session.finish()
        ordered = sorted(times[1:])
        row = self.findings.row("latency", "ms")
        row.values.append(statistics.median(ordered) * 1e3)
        row.p99.append(ordered[int(len(ordered) * 0.99)] * 1e3)

    @asynccontextmanager
    async def _session(self, client: ConnectedClient, *, lines: bool) -> AsyncGenerator[UploadSession, None]:
        """Open an upload, which is deleted later."""
        session = client.upload(_NAME, lines=lines, context=self._context)
        opening = asyncio.create_task(session.open())
        try:
            await asyncio.shield(opening)
        finally:
            # Also of one that was interrupted: what the server has made for it is to be deleted.
            await asyncio.wait([opening], timeout=_PATIENCE)
            if opening.done() and opening.exception() is None:
                self._made.append(session.reference)
            opening.cancel()
        async with session:
            yield session

    def _timed(self, name: str) -> _Timer:
        return _Timer(self.findings.row(name, "GB/s"), self.amounts.size)

    async def _clear(self, client: ConnectedClient) -> None:
        """Delete what was made, in bounded time; what cannot be deleted is noted."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while self._made:
                    try:
                        await client.delete(self._made[-1])
                    except TailraceError as error:
                        self.findings.left[self._made[-1]] = error
                    else:
                        self.findings.deleted += 1
                    self._made.pop()
        except TimeoutError:
            for reference in self._made:
                self.findings.left[reference] = DeadlineExceeded(what="its deletion", seconds=_PATIENCE)
            self._made.clear()


def _figure(value: float) -> str:
    """Return three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


class _Timer:
    """Adds what its block took to a row."""

    def __init__(self, row: Row, size: int) -> None:
        self._row = row
        self._gigabytes = size / 1e9

    def __enter__(self) -> None:
        self._used = time.process_time()
        self._begin = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._row.values.append(self._gigabytes / (time.perf_counter() - self._begin))
            self._row.processor.append((time.process_time() - self._used) / self._gigabytes)


async def _within_patience(arriving: Awaitable[bytes]) -> bytes:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await arriving
    except TimeoutError:
        raise DeadlineExceeded(what="a line at its reader", seconds=_PATIENCE) from None


def _rounded(values: Sequence[float]) -> float:
    return round(statistics.median(values), 4)


def _check(status: Status, size: int) -> None:
    # That the head is the one of what was sent was checked when the upload was finished.
    if status.state is not ResourceState.COMPLETED or status.size != size:
        raise IntegrityError(offset=status.size, problem=f"{status.state.value} with {status.size} bytes of {size}")
