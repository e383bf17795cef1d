"""Slices of a statement of SQLite: nothing waits for a row that does not come, and large rows do not pile up."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tailrace_impl_server import _sqlite_reading
from tailrace_impl_server._sqlite_reading import SqliteReading

UPTO = "WITH RECURSIVE upto (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM upto WHERE n < :count)"
FOREVER = "forever (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM forever)"


class Gates:
    """What a statement waits for: the SQL function ``gate`` returns a number once that is open."""

    def __init__(self) -> None:
        self._open = threading.Condition()
        self._up_to = 0

    def open(self, up_to: int) -> None:
        """Let the numbers up to this one pass."""
        with self._open:
            self._up_to = max(self._up_to, up_to)
            self._open.notify_all()

    def pass_(self, number: int) -> int:
        with self._open:
            assert self._open.wait_for(lambda: number <= self._up_to, timeout=50)
        return number


class Clock:
    """A clock that goes on where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gates]:
    """Gates that every statement can use. At the end they are open, so that no thread is left behind them."""
    gates = Gates()
    with_function(monkeypatch, "gate", gates.pass_)
    yield gates
    gates.open(1 << 60)


def with_function(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    """Let statements use a function of one argument."""
    connect = _sqlite_reading.connect_to_read

    def connect_with_it(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.create_function(name, 1, function)
        return connection

    monkeypatch.setattr(_sqlite_reading, "connect_to_read", connect_with_it)


@asynccontextmanager
async def reading(folder: Path, text: str, *, threads: int = 1, **values: int) -> AsyncGenerator[SqliteReading, None]:
    """Read what a statement gives of an empty file."""
    with ThreadPoolExecutor(threads) as pool:
        one = SqliteReading(folder / "empty.sqlite", text, values, pool)
        try:
            yield one
        finally:
            await one.end()


def numbers(records: list[bytes]) -> list[int]:
    return [json.loads(record)["n"] for record in records]


async def read(one: SqliteReading, count: int) -> list[int]:
    """Return the next rows, which are to be exactly so many when the statement can give no others yet."""
    got: list[int] = []
    while len(got) < count:
        got += numbers(await one.next())
    assert len(got) == count
    return got


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 33, 34, 100, 1000, 1023, 1024, 1025, 5000, 60_000])
async def test_rows_before_a_silence_are_handed_on(tmp_path: Path, count: int) -> None:
    """The last one apart: Python's ``sqlite3`` has it, and looks for the next before it gives it away."""
    silence = f"{UPTO}, {FOREVER} SELECT n FROM upto UNION ALL SELECT count(*) FROM forever"
    async with reading(tmp_path, silence, count=count) as one:
        assert await read(one, count - 1) == list(range(1, count))
        # Returns when the thread has let go of the statement, which has no end by itself; nobody waits for its rows.
        await one.end()


@pytest.mark.parametrize("before", [2, 10, 40, 3000])
async def test_a_statement_that_goes_on_gives_each_row_as_soon_as_there_is_another(
    tmp_path: Path, gates: Gates, before: int
) -> None:
    gates.open(before)
    async with reading(tmp_path, f"{UPTO} SELECT gate(n) AS n FROM upto", count=before + 50) as one:
        assert await read(one, before - 1) == list(range(1, before))
        for number in range(before, before + 20):
            gates.open(number + 1)
            assert numbers(await one.next()) == [number]
        gates.open(before + 50)
        assert await read(one, 31) == list(range(before + 20, before + 51))
        assert await one.next() == []


async def test_a_statement_that_ends_behind_a_silence_gives_everything_once(tmp_path: Path, gates: Gates) -> None:
    gates.open(700)
    async with reading(tmp_path, f"{UPTO} SELECT gate(n) AS n FROM upto", count=100_000) as one:
        got = await read(one, 699)
        gates.open(100_000)
        while records := await one.next():
            got += numbers(records)
        assert got == list(range(1, 100_001))
        assert await one.next() == []


async def test_a_statement_that_fails_behind_a_silence_fails(tmp_path: Path, gates: Gates) -> None:
    gates.open(50)
    failing = f"{UPTO} SELECT gate(n) AS n, CASE WHEN n = 60 THEN json_extract('{{', '$') END AS x FROM upto"
    async with reading(tmp_path, failing, count=100) as one:
        assert await read(one, 49) == list(range(1, 50))
        gates.open(100)

        async def rest() -> None:
            while await one.next():
                pass
            pytest.fail("a statement that failed has an end")

        with pytest.raises(sqlite3.OperationalError, match="malformed JSON"):
            await rest()


async def test_a_reader_that_is_cancelled_in_a_silence_ends_the_statement(tmp_path: Path) -> None:
    silence = f"{UPTO}, {FOREVER} SELECT n FROM upto UNION ALL SELECT count(*) FROM forever"
    async with reading(tmp_path, silence, count=100) as one:
        await read(one, 99)
        waiting = asyncio.create_task(one.next())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # Returns when the thread has let go of the statement, which has no end by itself.
        await one.end()


async def test_a_reading_that_is_ended_before_a_thread_was_free_has_no_more_rows(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        one = SqliteReading(tmp_path / "empty.sqlite", "SELECT 1 AS n", {}, pool)
        held = threading.Event()
        pool.submit(held.wait, 50)
        waiting = asyncio.create_task(one.next())
        await asyncio.sleep(0)
        await one.end()
        assert await waiting == []
        assert one.ended
        held.set()


async def test_rows_wait_for_no_thread_that_others_hold(tmp_path: Path, gates: Gates) -> None:
    """Rows that a thread fetched late are not held in a silence either."""
    gates.open(1000)
    with ThreadPoolExecutor(1) as pool:
        text = f"{UPTO} SELECT gate(n) AS n FROM upto"
        late = SqliteReading(tmp_path / "empty.sqlite", text, {"count": 2000}, pool)
        held = threading.Event()
        pool.submit(held.wait, 50)
        waiting = asyncio.create_task(late.next())
        await asyncio.wait((waiting,), timeout=0.1)
        assert not waiting.done()
        held.set()
        assert numbers(await waiting) == [1]
        # And so with a slice in the middle.
        held = threading.Event()
        pool.submit(held.wait, 50)
        waiting = asyncio.create_task(late.next())
        await asyncio.wait((waiting,), timeout=0.1)
        assert not waiting.done()
        held.set()
        got = numbers(await waiting)
        assert got + await read(late, 998 - len(got)) == list(range(2, 1000))
        gates.open(2000)
        assert await read(late, 1001) == list(range(1000, 2001))
        await late.end()


async def test_large_rows_behind_small_ones_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of the small ones were fetched at once: of the large ones, it is as many as time allows."""
    clock = Clock()

    def text(number: int) -> str:
        if number <= 20_000:
            return "x"
        clock.now += 0.001
        return "y" * 10_000

    monkeypatch.setattr(_sqlite_reading, "monotonic", clock)
    with_function(monkeypatch, "text", text)
    slices = []
    async with reading(tmp_path, f"{UPTO} SELECT text(n) AS t FROM upto", count=20_500) as one:
        while records := await one.next():
            slices.append(records)
    small = [sum(len(record) < 100 for record in records) for records in slices]
    large = [len(records) - few for records, few in zip(slices, small, strict=True)]
    assert (sum(small), sum(large)) == (20_000, 500)
    assert max(small) > 1024
    # The clock is looked at behind so many rows, and five of the large ones take what a slice may.
    assert max(large) <= 32 + 5
