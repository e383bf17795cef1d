"""Blocking code gets into a loop in another thread, and nothing stays there behind its back."""

import asyncio
import gc
import inspect
import queue
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tailrace_common_api.blocking import BlockingIterator, call, call_plain


class LoopThread:
    """The smallest portal: a loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def start_task_soon(self, func: Callable[..., Any], *args: Any) -> Future[Any]:
        async def run() -> Any:
            result = func(*args)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop)

    def stop(self) -> None:
        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.start_task_soon(cancel_all).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def portal() -> Iterator[LoopThread]:
    portal = LoopThread()
    yield portal
    portal.stop()


class Source:
    """Counts up, and records what was taken and whether it was closed."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.made = 0
        self.closed = threading.Event()
        self.waiting = threading.Event()

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.count):
                self.made += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()

    async def endless(self) -> AsyncGenerator[int, None]:
        try:
            yield 0
            self.waiting.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.closed.set()


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Let a signal interrupt this thread as Ctrl-C does, whatever the test runner has installed."""

    def raise_interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, raise_interrupt)
    target = threading.get_ident()
    yield lambda: signal.pthread_kill(target, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_a_call_returns_what_the_coroutine_returns(portal: LoopThread) -> None:
    async def add(first: int, *, second: int) -> int:
        return first + second

    assert call(portal, add, 1, second=2) == 3
    assert call_plain(portal, threading.get_ident) == portal.thread.ident


def test_a_call_raises_what_the_coroutine_raises(portal: LoopThread) -> None:
    async def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        call(portal, fail)


def test_an_interrupted_call_is_cancelled_and_has_ended_when_the_interruption_goes_on(
    portal: LoopThread, interrupt: Callable[[], None]
) -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            threading.Thread(target=interrupt).start()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        call(portal, work)
    assert steps == ["cleaned up"]


@pytest.mark.parametrize("ahead", [0, 1, 7, 1000])
def test_an_iterator_gives_all_items_in_order(portal: LoopThread, ahead: int) -> None:
    source = Source(500)
    assert list(BlockingIterator(portal, source.items(), ahead=ahead)) == list(range(500))
    assert source.closed.is_set()


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_error_comes_behind_the_items_before_it_and_once(portal: LoopThread, ahead: int) -> None:
    iterator = BlockingIterator(portal, Source(2, LookupError("gone")).items(), ahead=ahead)
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(LookupError):
        next(iterator)
    assert next(iterator, "end") == "end"


def test_nothing_is_fetched_before_it_is_asked_for_and_no_more_than_allowed(portal: LoopThread) -> None:
    source = Source(1000)
    with BlockingIterator(portal, source.items(), ahead=10, cost=lambda item: 5) as iterator:
        assert source.made == 0
        next(iterator)
        # Ten units are two items; the one that was taken made room for one more.
        call(portal, _until_idle, iterator)
        assert source.made == 3


async def _until_idle(iterator: BlockingIterator[int]) -> None:
    while not iterator._pump.sleeping:  # noqa: ASYNC110 - the code under test tells nobody that it sleeps
        await asyncio.sleep(0)


def test_without_read_ahead_each_item_is_made_when_it_is_asked_for(portal: LoopThread) -> None:
    source = Source(1000)
    with BlockingIterator(portal, source.items()) as iterator:
        for expected in range(20):
            assert next(iterator) == expected
            call(portal, _until_idle, iterator)
            assert source.made == expected + 1


def test_closing_ends_a_generator_that_waits_and_waits_for_its_end(portal: LoopThread) -> None:
    source = Source(0)
    iterator = BlockingIterator(portal, source.endless(), ahead=10)
    assert next(iterator) == 0
    source.waiting.wait()
    iterator.close()
    assert source.closed.is_set()
    assert list(iterator) == []
    iterator.close()


def test_closing_before_the_first_item_starts_nothing(portal: LoopThread) -> None:
    source = Source(3)
    iterator = BlockingIterator(portal, source.items(), ahead=1)
    iterator.close()
    assert list(iterator) == []
    assert source.made == 0


def test_dropping_an_iterator_ends_its_generator(portal: LoopThread) -> None:
    source = Source(0)
    iterator = BlockingIterator(portal, source.endless(), ahead=10)
    next(iterator)
    source.waiting.wait()
    del iterator
    gc.collect()
    assert source.closed.wait(30)


def test_an_interrupted_iteration_can_go_on(portal: LoopThread, interrupt: Callable[[], None]) -> None:
    gate: queue.SimpleQueue[asyncio.Event] = queue.SimpleQueue()

    async def items() -> AsyncGenerator[int, None]:
        event = asyncio.Event()
        gate.put(event)
        threading.Thread(target=interrupt).start()
        await event.wait()
        yield 1
        yield 2

    iterator = BlockingIterator(portal, items())
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    portal.loop.call_soon_threadsafe(gate.get().set)
    assert list(iterator) == [1, 2]


class InterruptedOnce:
    """Interrupts the first start of a task as Ctrl-C may: before it has told the loop, or behind."""

    def __init__(self, portal: LoopThread, *, told: bool) -> None:
        self.portal = portal
        self.told = told
        self.interrupted = False

    def start_task_soon(self, func: Callable[..., Any], *args: Any) -> Future[Any]:
        if self.interrupted:
            return self.portal.start_task_soon(func, *args)
        self.interrupted = True
        if self.told:
            self.portal.start_task_soon(func, *args)
        raise KeyboardInterrupt


@pytest.mark.parametrize("told", [False, True])
def test_an_iteration_that_is_interrupted_as_it_starts_can_go_on(portal: LoopThread, told: bool) -> None:
    source = Source(3)
    iterator = BlockingIterator(InterruptedOnce(portal, told=told), source.items(), ahead=10)
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    assert list(iterator) == [0, 1, 2]
    assert source.made == 3


@pytest.mark.parametrize("told", [False, True])
def test_an_iteration_that_is_interrupted_as_it_starts_can_be_closed(portal: LoopThread, told: bool) -> None:
    source = Source(3)
    iterator = BlockingIterator(InterruptedOnce(portal, told=told), source.endless())
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    iterator.close()
    assert list(iterator) == []
    iterator.close()


def test_an_iterator_whose_loop_ends_says_so(portal: LoopThread) -> None:
    source = Source(0)
    iterator = BlockingIterator(portal, source.endless(), ahead=10)
    next(iterator)

    async def cancel() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    source.waiting.wait()
    call(portal, cancel)
    with pytest.raises(RuntimeError, match="loop ended"):
        next(iterator)
