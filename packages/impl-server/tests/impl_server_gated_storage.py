"""A storage whose steps a test can hold up and count; everything else is the real storage below it."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from tailrace_common_api import TailraceError
from tailrace_server_api import (
    Boundary,
    Buffer,
    Damage,
    Descriptor,
    Durability,
    Outcome,
    Piece,
    ResourceWriter,
    Snapshot,
    Storage,
)

T = TypeVar("T")


class Gates:
    """Holds up calls by name, counts them, and lets them fail."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.failures: dict[str, TailraceError] = {}
        self.stored_shown: int | None = None
        """What writers say is stored, as when a thread has not come to it yet; ``None`` for the truth."""
        self._closed: dict[str, asyncio.Event] = {}
        self._arrived: dict[str, asyncio.Event] = {}

    def shut(self, name: str) -> None:
        """Hold up calls from now on."""
        self._closed[name] = asyncio.Event()
        self._arrived[name] = asyncio.Event()

    def open(self, name: str) -> None:
        """Let the calls that are held up go on, and those after them."""
        self._closed.pop(name).set()

    async def arrival(self, name: str) -> None:
        """Wait until a call is held up."""
        await self._arrived[name].wait()

    async def passing(self, name: str) -> None:
        """Come to the gate."""
        self.calls[name] += 1
        if name in self._closed:
            self._arrived[name].set()
            await self._closed[name].wait()
        if name in self.failures:
            raise self.failures[name]


class GatedWriter(ResourceWriter):
    def __init__(self, inner: ResourceWriter, gates: Gates) -> None:
        self._inner = inner
        self._gates = gates

    @property
    def epoch(self) -> int:
        return self._inner.epoch

    @property
    def snapshot(self) -> Snapshot:
        return self._inner.snapshot

    @property
    def stored(self) -> int:
        shown = self._gates.stored_shown
        return self._inner.stored if shown is None else shown

    def append(self, data: Buffer, *, hash: bytes | None = None) -> None:
        self._inner.append(data, hash=hash)

    async def flush(self) -> int:
        await self._gates.passing("flush")
        return await self._inner.flush()

    async def checkpoint(self) -> Outcome:
        outcome = await self._inner.checkpoint()
        await self._gates.passing("checkpoint")
        return outcome

    async def complete(self) -> Outcome:
        outcome = await self._inner.complete()
        await self._gates.passing("complete")
        return outcome

    async def fail(self, reason: str) -> Outcome:
        outcome = await self._inner.fail(reason)
        await self._gates.passing("fail")
        return outcome

    async def close(self) -> None:
        self._gates.calls["close"] += 1
        await self._inner.close()


class GatedStorage(Storage):
    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.gates = Gates()
        self.cached = True
        """Whether anything can be read without waiting."""

    @property
    def durability(self) -> Durability:
        return self.inner.durability

    async def start(self) -> None:
        await self.inner.start()

    async def close(self) -> None:
        await self.inner.close()

    async def create(self, descriptor: Descriptor) -> Snapshot:
        return await self._pass("create", lambda: self.inner.create(descriptor))

    async def describe(self, id: str) -> Descriptor:
        return await self._pass("describe", lambda: self.inner.describe(id))

    async def replace_token(self, id: str, token_hash: bytes) -> None:
        await self._pass("replace_token", lambda: self.inner.replace_token(id, token_hash))

    async def load(self, id: str) -> Snapshot:
        return await self._pass("load", lambda: self.inner.load(id))

    async def open(self, id: str) -> ResourceWriter:
        return GatedWriter(await self._pass("open", lambda: self.inner.open(id)), self.gates)

    def read_cached(self, id: str, start: int, end: int) -> Piece | None:
        return self.inner.read_cached(id, start, end) if self.cached else None

    async def read(self, id: str, start: int, end: int) -> Piece:
        return await self._pass("read", lambda: self.inner.read(id, start, end))

    async def boundary(self, id: str, offset: int) -> Boundary:
        return await self.inner.boundary(id, offset)

    async def boundary_of_newline(self, id: str, newlines: int, size: int) -> Boundary:
        return await self.inner.boundary_of_newline(id, newlines, size)

    async def verify(self, id: str, *, repair: bool = False) -> AsyncGenerator[Damage, None]:
        async with aclosing(self.inner.verify(id, repair=repair)) as damages:
            async for damage in damages:
                yield damage

    async def delete(self, id: str) -> None:
        await self._pass("delete", lambda: self.inner.delete(id))

    async def ids(self) -> AsyncGenerator[str, None]:
        async with aclosing(self.inner.ids()) as stored:
            async for id_ in stored:
                yield id_

    async def _pass(self, name: str, step: Callable[[], Awaitable[T]]) -> T:
        await self.gates.passing(name)
        return await step()
