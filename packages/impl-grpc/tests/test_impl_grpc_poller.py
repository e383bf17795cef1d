"""How event loops are bound to the poller of grpc.aio."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import grpc.aio
import pytest

from tailrace_impl_grpc._poller import keep_poller


@pytest.fixture
def wakes() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


class Poller:
    """Binds loops as grpc.aio does, and notes how often it is woken and what it then finds to take."""

    def __init__(self, wakes: socket.socket, *, by_number: bool = False, closed: int = 0) -> None:
        self.wakes = wakes
        self.by_number = by_number
        self.closed = closed
        """Events at the front that are for a loop that has been closed, at which grpc.aio stops."""
        self.bound = 0
        self.found: list[int] = []
        self.woken = asyncio.Event()

    def __call__(self) -> None:
        self.bound += 1
        loop = asyncio.get_running_loop()
        loop.add_reader(self.wakes.fileno() if self.by_number else self.wakes, self.handle)

    def handle(self) -> None:
        try:
            self.found.append(len(self.wakes.recv(1)))
        except BlockingIOError:
            self.found.append(0)
        if self.closed:
            self.closed -= 1
            loop = asyncio.new_event_loop()
            loop.close()
            loop.call_soon_threadsafe(self.woken.set)
        self.woken.set()


def run_bound(
    monkeypatch: pytest.MonkeyPatch,
    sockets: tuple[socket.socket, socket.socket],
    *,
    by_number: bool = False,
    closed: int = 0,
) -> Poller:
    """Bind a loop of its own, let ten events happen at once and another one later, and return who was woken."""
    ours, theirs = sockets

    async def main() -> Poller:
        loop = asyncio.get_running_loop()
        poller = Poller(ours, by_number=by_number, closed=closed)
        monkeypatch.setattr(grpc.aio, "init_grpc_aio", poller)
        keep_poller()
        keep_poller()
        assert "add_reader" not in vars(loop)
        for events in (b"x" * 10, b"y"):
            theirs.send(events)
            async with asyncio.timeout(20):
                await poller.woken.wait()
            poller.woken.clear()
        loop.remove_reader(ours)
        return poller

    with asyncio.Runner() as runner:
        return runner.run(main())


def test_events_that_happen_together_wake_a_loop_once(
    monkeypatch: pytest.MonkeyPatch, wakes: tuple[socket.socket, socket.socket]
) -> None:
    poller = run_bound(monkeypatch, wakes)
    assert poller.bound == 1
    assert poller.found == [1, 1]


def test_events_for_a_loop_that_is_closed_hold_up_nobody(
    monkeypatch: pytest.MonkeyPatch, wakes: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    poller = run_bound(monkeypatch, wakes, closed=3)
    assert poller.closed == 0
    assert poller.found == [1, 0, 0, 0, 1]
    assert caplog.records == []


def test_another_error_of_the_poller_is_told(
    monkeypatch: pytest.MonkeyPatch, wakes: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(poller: Poller) -> None:
        poller.found.append(1)
        poller.wakes.recv(1)
        poller.woken.set()
        raise RuntimeError("another one")

    monkeypatch.setattr(Poller, "handle", fail)
    poller = run_bound(monkeypatch, wakes)
    assert poller.found == [1, 1]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["another one"] * 2
    caplog.clear()


def test_a_poller_that_binds_otherwise_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, wakes: tuple[socket.socket, socket.socket]
) -> None:
    poller = run_bound(monkeypatch, wakes, by_number=True)
    assert poller.bound == 1
    assert set(poller.found) == {1}


async def test_a_loop_that_takes_no_attributes_is_bound_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        """A loop as an extension module may have it."""

        __slots__ = ("__weakref__",)

        def add_reader(self, *binding: object) -> None:
            bound.append(binding)

    bound: list[object] = []
    loop = Closed()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    monkeypatch.setattr(grpc.aio, "init_grpc_aio", lambda: loop.add_reader(1))
    keep_poller()
    monkeypatch.undo()
    assert bound == [(1,)]


_POLICIES = """
import asyncio, os, sys, threading
import grpc.aio
from tailrace_impl_grpc._poller import keep_poller

async def main():
    if sys.argv[1] == "late":
        grpc.aio.init_grpc_aio()
    keep_poller()
    for thread in threading.enumerate():
        print("poller" if "_poll_wrapper" in thread.name else "other", os.sched_getscheduler(thread.native_id))

os.sched_setscheduler(0, int(sys.argv[2]), os.sched_param(0))
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="there are no such policies elsewhere")
@pytest.mark.parametrize("when", ["first", "late"])
@pytest.mark.parametrize(("given", "policy"), [("SCHED_OTHER", "SCHED_BATCH"), ("SCHED_IDLE", "SCHED_IDLE")])
def test_the_poller_and_no_other_thread_waits_for_whoever_runs(when: str, given: str, policy: str) -> None:
    # In a process of its own: this one has a poller since other tests.
    arguments = [sys.executable, "-c", _POLICIES, when, str(getattr(os, given))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == [f"other {getattr(os, given)}", f"poller {getattr(os, policy)}"]
    assert done.stderr == ""
