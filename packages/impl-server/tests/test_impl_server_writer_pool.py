"""Strands: in order, by one thread at a time, fairly, and nothing is left lying."""

import threading
from collections import deque

from tailrace_impl_server._writer_pool import Strand, WriterPool


class Counting:
    """Work that notes what it did and whether two threads were in it at once."""

    def __init__(self, pool: WriterPool, slice: int = 1000) -> None:
        self.queue: deque[int] = deque()
        self.done: list[int] = []
        self.overlapped = False
        self.threads: set[int] = set()
        self.finished = threading.Event()
        self._inside = threading.Lock()
        self._slice = slice
        self.last: int | None = None
        self.strand: Strand = pool.strand(self)

    def submit(self, item: int) -> None:
        self.queue.append(item)
        self.strand.wake()

    def pending(self) -> bool:
        return bool(self.queue)

    def run(self) -> None:
        if not self._inside.acquire(blocking=False):
            self.overlapped = True
            return
        self.threads.add(threading.get_ident())
        for _ in range(self._slice):
            if not self.queue:
                break
            item = self.queue.popleft()
            self.done.append(item)
            if item == self.last:
                self.finished.set()
        self._inside.release()


def test_everything_is_done_once_in_order_and_never_by_two_threads() -> None:
    pool = WriterPool(4)
    works = [Counting(pool) for _ in range(8)]
    count = 5000
    for work in works:
        work.last = count - 1
    for item in range(count):
        for work in works:
            work.submit(item)
    for work in works:
        assert work.finished.wait(30)
        assert work.done == list(range(count))
        assert not work.overlapped
    pool.close()


def test_a_claimed_strand_is_left_alone_until_it_is_released() -> None:
    pool = WriterPool(1)
    work = Counting(pool)
    other = Counting(pool)
    work.last = other.last = 1
    assert work.strand.claim()
    assert not work.strand.claim()
    work.submit(1)
    other.submit(1)
    assert other.finished.wait(30)
    assert work.done == []
    work.strand.release()
    assert work.finished.wait(30)
    assert work.done == [1]
    pool.close()


def test_a_busy_strand_lets_the_others_in() -> None:
    pool = WriterPool(1)
    gate = threading.Event()

    class Waiting(Counting):
        def run(self) -> None:
            gate.wait(30)
            super().run()

    busy = Waiting(pool, slice=1)
    busy.last = 99
    for item in range(100):
        busy.submit(item)
    seen: list[int] = []

    class Noting(Counting):
        def run(self) -> None:
            seen.append(len(busy.done))
            super().run()

    noting = Noting(pool)
    noting.last = 0
    noting.submit(0)
    gate.set()
    assert noting.finished.wait(30)
    assert busy.finished.wait(30)
    # The one thread did one slice of the busy strand, then turned to the other.
    assert seen == [1]
    pool.close()


def test_a_defect_of_one_strand_does_not_stop_the_others() -> None:
    pool = WriterPool(1)

    class Failing(Counting):
        def run(self) -> None:
            self.queue.popleft()
            raise ValueError("a defect")

    failing, sound = Failing(pool), Counting(pool)
    sound.last = 0
    failing.submit(0)
    sound.submit(0)
    assert sound.finished.wait(30)
    failing.submit(1)
    pool.close()


def test_closing_ends_all_threads() -> None:
    before = set(threading.enumerate())
    pool = WriterPool(3)
    work = Counting(pool)
    work.last = 0
    work.submit(0)
    assert work.finished.wait(30)
    pool.close()
    # Others may have ended meanwhile.
    assert set(threading.enumerate()) <= before
    WriterPool(3).close()


def test_work_that_comes_one_by_one_always_finds_a_thread() -> None:
    pool = WriterPool(3)
    works = [Counting(pool) for _ in range(2)]
    for item in range(3000):
        for work in works:
            work.last = item
            work.finished.clear()
            work.submit(item)
        for work in works:
            assert work.finished.wait(30)
    for work in works:
        assert work.done == list(range(3000))
        assert not work.overlapped
    pool.close()


class Meeting:
    """Work that goes on only once as many others are in theirs."""

    def __init__(self, pool: WriterPool, barrier: threading.Barrier) -> None:
        self._barrier = barrier
        self._left = 20
        self.ended = threading.Event()
        self.strand: Strand = pool.strand(self)

    def pending(self) -> bool:
        return self._left > 0

    def run(self) -> None:
        self._barrier.wait(30)
        self._left -= 1
        if not self._left:
            self.ended.set()


def test_as_many_writers_work_at_once_as_there_are_threads() -> None:
    pool = WriterPool(3)
    barrier = threading.Barrier(3)
    works = [Meeting(pool, barrier) for _ in range(3)]
    for work in works:
        work.strand.wake()
    for work in works:
        assert work.ended.wait(30)
    pool.close()
