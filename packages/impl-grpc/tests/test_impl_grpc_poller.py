"""How event loops are bound to the poller of grpc.aio."""

import asyncio
import socket
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

    def __init__(self, wakes: socket.socket, *, by_number: bool = False) -> None:
        self.wakes = wakes
        self.by_number = by_number
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
        self.woken.set()


def run_bound(
    monkeypatch: pytest.MonkeyPatch, sockets: tuple[socket.socket, socket.socket], *, by_number: bool = False
) -> Poller:
    """Bind a loop of its own, let ten events happen at once and another one later, and return who was woken."""
    ours, theirs = sockets

    async def main() -> Poller:
        loop = asyncio.get_running_loop()
        poller = Poller(ours, by_number=by_number)
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
