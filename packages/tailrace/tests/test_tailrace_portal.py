"""The event loop of the blocking API, and the way into its thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest

from tailrace import _portal
from tailrace._portal import LoopThread, SharedPortal

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="none")


@pytest.fixture
def portal() -> Iterator[LoopThread]:
    portal = LoopThread()
    yield portal
    portal.stop()


async def _double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


async def _fail() -> None:
    await asyncio.sleep(0)
    raise LookupError("as expected")


async def _variable() -> str:
    return VARIABLE.get()


def test_coroutines_and_plain_functions_run_in_the_loop(portal: LoopThread) -> None:
    assert portal.start_task_soon(_double, 21).result() == 42
    thread: int = portal.start_task_soon(threading.get_ident).result()
    assert thread != threading.get_ident()


def test_what_a_task_raises_is_raised_to_who_waits(portal: LoopThread) -> None:
    with pytest.raises(LookupError, match="as expected"):
        portal.start_task_soon(_fail).result()
    with pytest.raises(ZeroDivisionError):
        portal.start_task_soon(divmod, 1, 0).result()
    assert portal.start_task_soon(_double, 1).result() == 2


def test_a_task_has_the_context_of_who_starts_it(portal: LoopThread) -> None:
    assert portal.start_task_soon(_variable).result() == "none"
    token = VARIABLE.set("mine")
    try:
        assert portal.start_task_soon(_variable).result() == "mine"
    finally:
        VARIABLE.reset(token)


def test_cancelling_the_future_cancels_the_task(portal: LoopThread) -> None:
    began, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = portal.start_task_soon(wait)
    assert began.wait(20)
    assert waiting.cancel()
    assert ended.wait(20)


def test_the_loop_cannot_wait_for_itself(portal: LoopThread) -> None:
    with pytest.raises(RuntimeError, match="own thread"):
        portal.start_task_soon(portal.start_task_soon, _double, 1).result()


def test_stopping_cancels_what_runs_and_refuses_what_comes() -> None:
    portal = LoopThread()
    began = threading.Event()
    cleaned: list[str] = []

    async def wait() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("up")

    waiting = portal.start_task_soon(wait)
    assert began.wait(20)
    portal.stop()
    assert cleaned == ["up"]
    with pytest.raises(CancelledError):
        waiting.result(20)
    with pytest.raises(RuntimeError, match="has ended"):
        portal.start_task_soon(_double, 1)
    portal.stop()


def test_nobody_waits_forever_for_a_loop_that_ends_meanwhile() -> None:
    portal = LoopThread()
    results: list[Future[Any]] = []
    enough = threading.Event()

    def start_many() -> None:
        while True:
            try:
                results.append(portal.start_task_soon(_double, 1))
            except RuntimeError:
                return
            if len(results) > 50:
                enough.set()

    starter = threading.Thread(target=start_many)
    starter.start()
    assert enough.wait(20)
    portal.stop()
    starter.join(20)
    assert not starter.is_alive()
    for result in results:
        assert result.cancelled() or result.result(20) == 2


def test_who_shares_it_ends_it_with_the_last() -> None:
    shared = SharedPortal()
    first, second = shared.acquire(), shared.acquire()
    assert first is second
    shared.release()
    assert first.start_task_soon(_double, 1).result() == 2
    shared.release()
    with pytest.raises(RuntimeError, match="has ended"):
        first.start_task_soon(_double, 1)
    third = shared.acquire()
    assert third is not first
    shared.release()


@pytest.mark.parametrize("begun", [False, True], ids=["before it has begun", "behind"])
def test_an_interruption_while_it_starts_leaves_no_thread(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    class Interrupted(queue.SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if not block:
                return super().get(block=False)
            if begun:
                self.put(super().get())
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(_portal, "queue", SimpleNamespace(SimpleQueue=Interrupted, Empty=queue.Empty))
        with pytest.raises(KeyboardInterrupt):
            LoopThread()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()


def test_a_loop_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> asyncio.AbstractEventLoop:
        raise OSError("too many open files")

    monkeypatch.setattr(_portal, "_loop_factory", lambda: fail)
    with pytest.raises(OSError, match="too many"):
        LoopThread()
