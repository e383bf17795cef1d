"""Where records that are ready are looked for while the index is full of entries of others."""

import asyncpg

from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_queue import PostgresQueue
from tailrace_impl_server._postgres_ready_search import Place, ReadySearch
from tailrace_server_api.contracts.queue import answer, data, feed, take

_QUICK, _SLOW = 0.001, 0.1


class _Table:
    """Records that are ready, and searches that take some time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds = _SLOW
        """Time that a thorough search takes."""
        self.ready: set[Place] = set()
        self.search = ReadySearch(lambda: self.now)
        self.again: float | None = None

    def claim(self, records: int, *, leave: int = 0) -> list[Place]:
        """Claim records, of which the last ``leave`` that were found are not taken."""
        scan = self.search.begin()
        if scan.thorough:
            self.now += self.seconds
        parts = list(zip(*scan.parts(), strict=True))
        found = [
            place
            for rank, above, end in parts
            for place in sorted(self.ready)
            if place > (rank, above) and place[0] < end
        ]
        scan.found += found[:records]
        self.search.looked(scan)
        taken = scan.found[: records - leave]
        self.ready -= set(taken)
        self.again = self.search.end(scan, {number for _, number in taken})
        return taken


class TestReadySearch:
    def test_while_it_is_quick_everything_is_found_at_once(self) -> None:
        table = _Table()
        table.seconds = _QUICK
        for place in [(0, 5), (0, 3), (-1, 9), (0, 1), (7, 2)]:
            table.ready.add(place)
            assert table.claim(10) == [place]
            assert table.again is None

    def test_when_it_is_slow_it_begins_where_something_may_be(self) -> None:
        table = _Table()
        table.ready = {(0, number) for number in range(1, 101)} | {(5, 50)}
        assert table.claim(10) == [(0, number) for number in range(1, 11)]
        began = table.now
        assert table.claim(10) == [(0, number) for number in range(11, 21)]
        # What comes later, and other priorities, need no thorough search.
        table.ready |= {(-3, 1), (0, 200), (9, 1)}
        assert table.claim(3) == [(-3, 1), (0, 21), (0, 22)]
        assert len(table.claim(1000)) == 81
        assert table.now == began

    def test_what_is_left_is_found_next(self) -> None:
        table = _Table()
        table.ready = {(rank, number) for rank in (0, 1) for number in range(1, 11)}
        assert len(table.claim(5)) == 5
        assert table.claim(5, leave=3) == [(0, 6), (0, 7)]
        assert table.claim(5) == [(0, 8), (0, 9), (0, 10), (1, 1), (1, 2)]

    def test_what_becomes_ready_before_that_is_found_after_some_time(self) -> None:
        table = _Table()
        table.ready = {(0, number) for number in range(10, 20)}
        assert len(table.claim(5)) == 5
        table.ready.add((0, 1))
        table.search.changed()
        assert (0, 1) not in table.claim(1)
        assert table.again is not None
        table.now += table.again
        assert table.claim(1) == [(0, 1)]

    def test_it_is_found_although_nobody_has_told(self) -> None:
        table = _Table()
        table.ready = {(0, number) for number in range(10, 20)}
        assert len(table.claim(5)) == 5
        table.ready.add((0, 1))
        table.now += 1.0
        assert table.claim(1) == [(0, 1)]

    def test_what_is_known_to_be_there_is_found_at_once(self) -> None:
        table = _Table()
        table.ready = {(0, number) for number in range(10, 20)}
        assert len(table.claim(5)) == 5
        table.ready.add((0, 1))
        table.search.force()
        assert table.claim(1) == [(0, 1)]

    def test_what_was_given_back_is_found_at_once_without_a_thorough_search(self) -> None:
        table = _Table()
        table.ready = {(rank, number) for rank in (0, 1) for number in range(10, 20)}
        assert len(table.claim(15)) == 15
        began = table.now
        table.ready |= {(0, 12), (0, 14), (1, 11)}
        table.search.given_back([14])
        table.search.given_back([12, 11])
        table.search.given_back([])
        assert table.claim(2) == [(0, 12), (0, 14)]
        assert table.claim(2) == [(1, 11), (1, 15)]
        # Only once, or every search would step over the entries of all that came since.
        table.ready.add((0, 12))
        assert table.claim(1) == [(1, 16)]
        assert table.now == began

    def test_it_is_quick_again_when_the_entries_have_gone(self) -> None:
        table = _Table()
        table.ready = {(0, 10), (0, 11), (0, 12)}
        assert table.claim(1) == [(0, 10)]
        table.seconds = _QUICK
        table.now += 1.0
        assert table.claim(1) == [(0, 11)]
        table.ready.add((0, 1))
        assert table.claim(1) == [(0, 1)]

    def test_many_priorities_are_not_remembered(self) -> None:
        table = _Table()
        table.ready = {(rank, 1) for rank in range(-500, 500)}
        assert len(table.claim(900)) == 900
        table.ready.add((0, 1))
        assert table.claim(1) == [(0, 1)]


async def test_what_is_ready_is_found_beyond_the_entries_of_what_is_gone(postgres_url: str) -> None:
    """The database keeps the entries as long as a transaction is open; the search begins behind them."""
    queue = PostgresQueue("tasks", PostgresDatabase("shop", postgres_url))
    await queue.start()
    holding = await asyncpg.connect(postgres_url)
    try:
        await holding.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await holding.execute("SELECT 1")
        await feed(queue, [b"%d" % number for number in range(2000)])
        await feed(queue, [b"low"] * 10, priority=-1)
        # As if each thorough search took a second.
        queue._search._cost = 1.0
        taken: list[bytes] = []
        while given := await take(queue, 100):
            taken += data(given)
            assert all(await queue.settle([answer(record) for record in given]))
            queue._search._cost = 1.0
            if len(taken) == 1000:
                await feed(queue, [b"high"], priority=1)
        assert taken[:1000] == [b"%d" % number for number in range(1000)]
        assert taken[1000:] == [b"high", *(b"%d" % number for number in range(1000, 2000)), *[b"low"] * 10]
    finally:
        await holding.close()
        await queue.close()
