"""The chunk chain: what shows loss, repeat, reordering, truncation and corruption at the chunk where it happens.

Each chunk of a transfer carries its offset, ``hash`` (see :func:`chunk_hash`) and ``previous`` (the hash of the chunk
before it in this transfer, empty for the first). A transfer may start at any offset. Sender and receiver are
roles: the sender is the client in an upload and the server in a download.
"""

from __future__ import annotations

from typing import Protocol

from tailrace_common_api import IntegrityError, ProtocolError
from tailrace_impl_common._blocks import chunk_hash
from tailrace_impl_common._buffers import Buffer


def verify_data(data: Buffer, hash: bytes, offset: int) -> None:
    """Check the bytes of a chunk against its hash. Keeps no state: may run in any thread.

    Args:
        data: Bytes of the chunk.
        hash: What the chunk says of them.
        offset: Offset of the chunk.

    Raises:
        IntegrityError: They differ; the last proven offset is the chunk's, if the chunks before it were verified.
    """
    if chunk_hash(data) != hash:
        raise mismatch(len(data), offset)


def mismatch(length: int, offset: int) -> IntegrityError:
    """Return the error for a chunk of ``length`` bytes at ``offset`` that do not have its hash."""
    problem = f"the {length} bytes at offset {offset} do not have the hash that came with them"
    return IntegrityError(offset=offset, problem=problem)


class ChunkHasher(Protocol):
    """What hashes bytes for another purpose, and can check them on the way."""

    def update_verified(self, data: Buffer, hash: bytes) -> object:
        """Take the bytes of a chunk if they have its hash.

        Raises:
            IntegrityError: They do not have it; nothing has changed.
        """


class ChainSender:
    """Links the chunks of one transfer, sending side."""

    __slots__ = ("offset", "previous")

    def __init__(self, offset: int = 0) -> None:
        """Start a transfer whose first chunk is at ``offset``."""
        # Both are read several times for each chunk: attributes, not properties.
        self.offset = offset
        """Offset of the next chunk."""
        self.previous = b""
        """Hash of the last chunk, empty before the first: what the next chunk, or the end mark, carries."""

    def next(self, data: Buffer) -> tuple[bytes, bytes]:
        """Take the bytes of the next chunk and return its ``(hash, previous)``."""
        own = chunk_hash(data)
        return own, self.link(own, len(data))

    def link(self, hash: bytes, length: int) -> bytes:
        """Take the next chunk, of ``length`` bytes that were hashed elsewhere, and return its ``previous``."""
        previous = self.previous
        self.previous = hash
        self.offset += length
        return previous


class ChainVerifier:
    """Checks the chunks of one transfer, receiving side.

    Order and bytes can be checked apart: :meth:`link` when a chunk arrives, :func:`verify_data` where its bytes are
    handled, in another thread perhaps. A chunk is proven when both have passed for it and for all before it.
    """

    __slots__ = ("_offset", "_previous")

    def __init__(self, offset: int = 0) -> None:
        """Expect a transfer whose first chunk is at ``offset``."""
        self._offset = offset
        self._previous = b""

    @property
    def offset(self) -> int:
        """Offset that the next chunk must have."""
        return self._offset

    @property
    def previous(self) -> bytes:
        """Hash of the last chunk that was linked, empty before the first."""
        return self._previous

    def link(self, offset: int, length: int, hash: bytes, previous: bytes) -> None:
        """Check that a chunk follows the one before it; a refused chunk changes nothing.

        Args:
            offset: Offset of the chunk.
            length: Number of its bytes.
            hash: Hash of its bytes; taken as it is, see :func:`verify_data`.
            previous: Hash of the chunk before it.

        Raises:
            IntegrityError: The chunk does not follow: one was lost, repeated or reordered.
            ProtocolError: The chunk has no bytes.
        """
        if previous != self._previous or offset != self._offset:
            raise IntegrityError(offset=self._offset, problem=self._gap(offset, previous))
        if length < 1:
            raise ProtocolError(f"chunk of {length} bytes at offset {offset}")
        self._offset = offset + length
        self._previous = hash

    def check(self, offset: int, data: Buffer, hash: bytes, previous: bytes, hasher: ChunkHasher | None = None) -> None:
        """Check order and bytes of a chunk; a refused chunk changes nothing.

        Args:
            offset: Offset of the chunk.
            data: Its bytes.
            hash: Their hash.
            previous: Hash of the chunk before it.
            hasher: Stands at the offset of the chunk, and takes its bytes on the way.

        Raises:
            IntegrityError: The chunk does not follow the one before it, or its bytes do not have its hash.
            ProtocolError: The chunk has no bytes.
        """
        if previous != self._previous or offset != self._offset:
            raise IntegrityError(offset=self._offset, problem=self._gap(offset, previous))
        if hasher is None:
            verify_data(data, hash, offset)
        else:
            hasher.update_verified(data, hash)
        self.link(offset, len(data), hash, previous)

    def finish(self, previous: bytes, offset: int | None = None) -> None:
        """Check an end mark.

        Args:
            previous: Hash of the last chunk, empty when there was none.
            offset: Where the transfer ends. ``None`` leaves it to the caller to compare it with :attr:`offset`: the
                hash alone does not tell the last chunk from an equal one before it.

        Raises:
            IntegrityError: The last chunk is not the one that arrived last.
        """
        if previous != self._previous or offset not in (None, self._offset):
            problem = "the end of the transfer does not follow the last chunk received"
            raise IntegrityError(offset=self._offset, problem=problem)

    def _gap(self, offset: int, previous: bytes) -> str:
        if offset == self._offset:
            return f"chunk at offset {offset} follows {_shown(previous)}; received last: {_shown(self._previous)}"
        return f"chunk at offset {offset} where offset {self._offset} comes next"


def _shown(hash: bytes) -> str:
    return f"chunk {hash.hex()}" if hash else "no chunk"
