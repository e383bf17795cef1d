"""Resources in the memory of the process: for tests, demonstrations and what need not outlive the server."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncGenerator
from dataclasses import replace

from tailrace_common_api import (
    AlreadyTerminal,
    DamagedBlock,
    IntegrityError,
    NotFound,
    ResourceState,
    StorageFailure,
    StorageFull,
)
from tailrace_impl_common import EMPTY_HEAD, HeadHasher, block_digest, chunk_hash, make_head, next_spine, verify_data
from tailrace_impl_server._filesystem_verify import DATA_DAMAGED
from tailrace_impl_server._journal import EMPTY_SPINE, cut_reason
from tailrace_server_api import (
    BLOCK_SIZE,
    Boundary,
    Buffer,
    Committed,
    Damage,
    Descriptor,
    Durability,
    Ended,
    FencedOff,
    Outcome,
    Piece,
    ResourceWriter,
    Snapshot,
    Storage,
)


class _Budget:
    """Bytes that may be stored over all resources."""

    __slots__ = ("_left", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit

    def take(self, size: int) -> None:
        """Account for bytes.

        Raises:
            StorageFull: There is no room for them.
        """
        if size > self._left:
            raise StorageFull(
                f"the server cannot store {size} bytes: {self._left} of {self._limit} bytes of memory are left"
            )
        self._left -= size

    def give_back(self, size: int) -> None:
        """Account for bytes that are not stored any more."""
        self._left += size


class _Resource:
    """The bytes of one resource in blocks, and its announced state."""

    __slots__ = ("blocks", "boundaries", "budget", "committed", "descriptor", "hasher", "snapshot", "writer")

    def __init__(self, descriptor: Descriptor, budget: _Budget) -> None:
        self.descriptor = descriptor
        self.budget = budget
        self.blocks: list[bytearray] = []
        self.boundaries = [Boundary(0, 0, EMPTY_SPINE)]
        self.hasher = HeadHasher(count_newlines=descriptor.metadata.lines)
        self.committed = self.hasher.copy()
        self.writer: MemoryWriter | None = None
        self.snapshot = Snapshot(
            version=1,
            epoch=0,
            state=ResourceState.INITIATED,
            reason=None,
            size=0,
            newlines=0,
            head=EMPTY_HEAD,
            open_line=False,
        )

    @property
    def stored(self) -> int:
        return self.hasher.size

    def store(self, data: Buffer) -> None:
        self.budget.take(len(data))
        view = memoryview(data)
        position = 0
        while position < len(view):
            room = -(self.stored + position) % BLOCK_SIZE
            if not room:
                self.blocks.append(bytearray())
                room = BLOCK_SIZE
            self.blocks[-1] += view[position : position + room]
            position += room
        for block in self.hasher.update(data):
            self.boundaries.append(Boundary((block.number + 1) * BLOCK_SIZE, block.newlines, block.spine))

    def cut(self) -> None:
        """Remove what is stored beyond the announced size."""
        size = self.snapshot.size
        self.budget.give_back(self.stored - size)
        del self.blocks[-(-size // BLOCK_SIZE) :]
        if size % BLOCK_SIZE:
            del self.blocks[-1][size % BLOCK_SIZE :]
        del self.boundaries[size // BLOCK_SIZE + 1 :]
        self.hasher = self.committed.copy()

    def read(self, start: int, end: int) -> Piece:
        parts = []
        while start < end:
            number, position = divmod(start, BLOCK_SIZE)
            # Copied, never shared: a bytearray cannot grow while somebody holds a view of it.
            part = bytes(self.blocks[number][position : position + end - start]) if number < len(self.blocks) else b""
            if not part:
                raise DamagedBlock(offset=start - position, problem=f"the stored bytes end at {start}")
            parts.append(part)
            start += len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return Piece(data, chunk_hash(data))

    def commit(self, state: ResourceState, reason: str | None = None) -> Committed:
        hasher = self.hasher
        self.snapshot = Snapshot(
            version=self.snapshot.version + 1,
            epoch=self.snapshot.epoch,
            state=state,
            reason=reason,
            size=hasher.size,
            newlines=hasher.newlines,
            head=hasher.head(),
            open_line=self.descriptor.metadata.lines and hasher.size > 0 and not hasher.ends_with_newline,
        )
        self.committed = hasher.copy()
        return Committed(self.snapshot)


class MemoryWriter(ResourceWriter):
    """Writes one resource under one epoch. Bytes are stored where they are handed over; errors show where one waits."""

    def __init__(self, resource: _Resource) -> None:
        self._resource = resource
        self._snapshot = resource.snapshot
        self._stored = resource.stored
        self._fenced: int | None = None
        self._closed = False
        self._error: IntegrityError | StorageFull | None = None
        self._error_told = False

    @property
    def epoch(self) -> int:
        return self._snapshot.epoch

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @property
    def stored(self) -> int:
        return self._stored

    def append(self, data: Buffer, *, hash: bytes | None = None) -> None:
        if self._refusal() or self._closed or self._error is not None:
            return
        try:
            if hash is not None:
                verify_data(data, hash, self._stored)
            self._resource.store(data)
        except (IntegrityError, StorageFull) as error:
            self._error = error
        else:
            self._stored = self._resource.stored

    async def flush(self) -> int:
        if self._error is not None and not self._refusal():
            self._error_told = True
            raise self._error
        return self._stored

    async def checkpoint(self) -> Outcome:
        if refusal := self._refused():
            return refusal
        if self._error is not None and not (self._error_told and isinstance(self._error, IntegrityError)):
            self._error_told = True
            raise self._error
        if self._stored == self._snapshot.size:
            return Committed(self._snapshot)
        return self._committed(self._resource.commit(ResourceState.IN_PROGRESS))

    async def complete(self) -> Outcome:
        if refusal := self._refused():
            return refusal
        if self._error is not None:
            self._error_told = True
            raise self._error
        return self._committed(self._resource.commit(ResourceState.COMPLETED))

    async def fail(self, reason: str) -> Outcome:
        if refusal := self._refused():
            return refusal
        return self._committed(self._resource.commit(ResourceState.FAILED, cut_reason(reason)))

    async def close(self) -> None:
        self._closed = True

    def fence(self, epoch: int) -> None:
        """Store and announce nothing any more, since a writer of ``epoch`` takes over."""
        if self._fenced is None:
            self._fenced = epoch

    def _committed(self, outcome: Committed) -> Committed:
        self._snapshot = outcome.snapshot
        return outcome

    def _refusal(self) -> FencedOff | Ended | None:
        if self._snapshot.state.terminal:
            return Ended(self._snapshot)
        if self._fenced is not None:
            return FencedOff(self._fenced)
        return None

    def _refused(self) -> FencedOff | Ended | None:
        refusal = self._refusal()
        if refusal is None and self._closed:
            raise StorageFailure("the writer is closed")
        return refusal


class MemoryStorage(Storage):
    """Keeps a bounded number of bytes; everything is gone with the process."""

    def __init__(self, *, max_bytes: int = 1 << 30) -> None:
        """Describe the storage.

        Args:
            max_bytes: Most bytes over all resources; beyond them the storage is full.
        """
        self._budget = _Budget(max_bytes)
        self._resources: dict[str, _Resource] = {}

    @property
    def durability(self) -> Durability:
        return Durability.OS

    async def start(self) -> None:
        self._resources.clear()

    async def close(self) -> None:
        for resource in self._resources.values():
            if resource.writer is not None:
                await resource.writer.close()

    async def create(self, descriptor: Descriptor) -> Snapshot:
        if descriptor.id in self._resources:
            raise StorageFailure(f"resource {descriptor.id} is stored already")
        resource = _Resource(descriptor, self._budget)
        self._resources[descriptor.id] = resource
        return resource.snapshot

    async def describe(self, id: str) -> Descriptor:
        return self._find(id).descriptor

    async def replace_token(self, id: str, token_hash: bytes) -> None:
        resource = self._find(id)
        resource.descriptor = replace(resource.descriptor, token_hash=token_hash)

    async def load(self, id: str) -> Snapshot:
        return self._find(id).snapshot

    async def open(self, id: str) -> ResourceWriter:
        resource = self._find(id)
        before = resource.snapshot
        if before.state.terminal:
            raise AlreadyTerminal(id=id, state=before.state.value)
        if resource.writer is not None:
            resource.writer.fence(before.epoch + 1)
        resource.cut()
        resource.snapshot = replace(before, version=before.version + 1, epoch=before.epoch + 1)
        resource.writer = MemoryWriter(resource)
        return resource.writer

    def read_cached(self, id: str, start: int, end: int) -> Piece | None:
        resource = self._resources.get(id)
        return None if resource is None else resource.read(start, end)

    async def read(self, id: str, start: int, end: int) -> Piece:
        return self._find(id).read(start, end)

    async def boundary(self, id: str, offset: int) -> Boundary:
        return self._find(id).boundaries[offset // BLOCK_SIZE]

    async def boundary_of_newline(self, id: str, newlines: int, size: int) -> Boundary:
        boundaries = self._find(id).boundaries
        behind = bisect_left(boundaries, newlines, hi=size // BLOCK_SIZE + 1, key=lambda boundary: boundary.newlines)
        return boundaries[behind - 1]

    async def verify(self, id: str, *, repair: bool = False) -> AsyncGenerator[Damage, None]:
        resource = self._find(id)
        size = resource.snapshot.size
        damaged = False
        for number in range(-(-size // BLOCK_SIZE)):
            block = (
                bytes(resource.blocks[number][: size - number * BLOCK_SIZE]) if number < len(resource.blocks) else b""
            )
            if len(block) == BLOCK_SIZE:
                spine = next_spine(resource.boundaries[number].spine, block_digest(block))
                good = spine == resource.boundaries[number + 1].spine
            else:
                spine = resource.boundaries[number].spine
                good = make_head(spine, block_digest(block), size) == resource.snapshot.head
            if not good:
                damaged = True
                yield Damage(number * BLOCK_SIZE, "the stored bytes do not have their digest")
        if damaged and repair and not resource.snapshot.state.terminal:
            resource.cut()
            resource.commit(ResourceState.FAILED, DATA_DAMAGED)
            yield Damage(None, f"the unfinished resource is ended as failed: {DATA_DAMAGED}", repaired=True)

    async def delete(self, id: str) -> None:
        resource = self._find(id)
        if resource.writer is not None:
            resource.writer.fence(resource.snapshot.epoch + 1)
        del self._resources[id]
        self._budget.give_back(resource.stored)

    async def ids(self) -> AsyncGenerator[str, None]:
        for stored in list(self._resources):
            yield stored

    def _find(self, id: str) -> _Resource:
        resource = self._resources.get(id)
        if resource is None:
            raise NotFound(id=id)
        return resource
