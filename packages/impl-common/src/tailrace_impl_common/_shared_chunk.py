"""One chunk for all followers that are at the same place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from tailrace_common_api import Checkpoint
from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common.messages import Chunk
from tailrace_server_api import Snapshot

EncodedT = TypeVar("EncodedT")


class SharedChunk:
    """The chunk that was made last. Belongs to one event loop.

    Followers that have everything need the same chunk at the same time, one after the other: who needs exactly what the
    one before it got, gets the same object, by which transports know that they have encoded it already. Nothing is
    looked up by offset or name, so nobody can get what belongs to another resource, place or chain.
    """

    __slots__ = ("_checkpoint", "_chunk", "_snapshot")

    def __init__(self) -> None:
        """Begin with none."""
        self._chunk: Chunk | None = None
        self._snapshot: Snapshot | None = None
        self._checkpoint: Checkpoint | None = None

    def checkpoint_at(self, end: int, snapshot: Snapshot) -> Checkpoint | None:
        """Return the checkpoint for a chunk that ends at ``end``; ``None`` where the snapshot has none."""
        if end != snapshot.size:
            return None
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._checkpoint = snapshot.checkpoint
        return self._checkpoint

    def again(self, offset: int, previous: bytes, snapshot: Snapshot, most: int) -> Chunk | None:
        """Return the last chunk if it is the next one of this follower, too, without a look at the resource.

        Args:
            offset: Where the follower is.
            previous: Hash of the last chunk that it was sent, empty for none.
            snapshot: What is announced to it.
            most: Most bytes that the chunk may have.

        Returns:
            The last chunk, if it begins there and ends with that snapshot; a snapshot is of one resource only, and so
            is its checkpoint, which the chunk has. ``None`` if it is another one.
        """
        last = self._chunk
        if (
            last is not None
            and snapshot is self._snapshot
            and last.checkpoint is self._checkpoint
            and last.offset == offset
            and last.previous == previous
            and len(last.data) <= most
        ):
            return last
        return None

    def chunk(self, offset: int, data: Buffer, hash: bytes, previous: bytes, checkpoint: Checkpoint | None) -> Chunk:
        """Return the chunk that has exactly these values; the last one, if it has."""
        last = self._chunk
        if (
            last is not None
            and last.data is data
            and last.offset == offset
            and last.previous == previous
            and last.hash == hash
            and last.checkpoint is checkpoint
        ):
            return last
        self._chunk = chunk = Chunk(offset, data, hash, previous, checkpoint)
        return chunk


class EncodedOnce(Generic[EncodedT]):
    """What a transport makes of a chunk, for all who are sent that same chunk one after the other.

    Of chunks above a size nothing is kept: encoding them costs little beside sending them, and they are large.
    """

    __slots__ = ("_chunk", "_encode", "_encoded", "_largest")

    def __init__(self, encode: Callable[[Chunk], EncodedT], *, largest: int) -> None:
        """Encode with ``encode``, and keep what it makes of chunks of up to ``largest`` bytes."""
        self._encode = encode
        self._largest = largest
        self._chunk: Chunk | None = None
        self._encoded: EncodedT | None = None

    def of(self, chunk: Chunk) -> EncodedT:
        """Return the encoded chunk."""
        if chunk is self._chunk and self._encoded is not None:
            return self._encoded
        encoded = self._encode(chunk)
        if len(chunk.data) <= self._largest:
            self._chunk = chunk
            self._encoded = encoded
        return encoded
