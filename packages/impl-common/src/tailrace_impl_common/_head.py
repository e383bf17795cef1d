"""The head: what commits to every byte of a prefix and continues from 16 bytes and one block.

A resource is cut into blocks of 128 KiB on a fixed grid. With ``‖`` for concatenation::

    digest of a block   XXH3-128 of its bytes
    spine(0)            16 zero bytes
    spine(k + 1)        XXH3-128(spine(k) ‖ digest of block k)
    head                XXH3-128(spine ‖ digest of the open block if it has bytes ‖ size as 8 bytes little-endian)

The spine covers the full blocks; the open block is the unfinished one behind them, and is empty when the size is a
multiple of the block size. Digests are the canonical big-endian bytes, as output and as input of spine and head. The
head depends on the bytes alone, never on how they were cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from xxhash import xxh3_128, xxh3_128_digest

from tailrace_impl_common._buffers import Buffer, flat
from tailrace_impl_common._chain import HASH_SIZE, chunk_hash, mismatch, verify_data
from tailrace_impl_common._lines import NEWLINE, count_newlines

BLOCK_SIZE = 128 * 1024
"""Bytes of a block."""
DIGEST_SIZE = 16
"""Bytes of a block digest, of the spine and of a head."""
EMPTY_SPINE = bytes(DIGEST_SIZE)
"""The spine before the first full block."""

_READ_SIZE = 1024 * 1024
# Bytes that a chunk is fed with before the blocks in them are hashed: not more than a processor's own cache holds.
_GROUP_SIZE = 8 * BLOCK_SIZE
# A named tuple's own constructor takes twice as long, and there is one for each block.
_new_tuple = tuple.__new__


def block_digest(data: Buffer) -> bytes:
    """Return the digest of a block with these bytes, 16 bytes."""
    return xxh3_128_digest(data)


def next_spine(spine: bytes, digest: bytes) -> bytes:
    """Return the spine after one more full block with this digest."""
    return xxh3_128_digest(spine + digest)


def make_head(spine: bytes, open_digest: bytes, size: int) -> bytes:
    """Return the head of ``size`` bytes.

    Args:
        spine: Spine over the full blocks, 16 bytes.
        open_digest: Digest of the open block, 16 bytes; empty when the open block is.
        size: Size in bytes.
    """
    return xxh3_128_digest(spine + open_digest + size.to_bytes(8, "little"))


EMPTY_HEAD = make_head(EMPTY_SPINE, b"", 0)
"""Head of the empty resource."""


class BlockDigest(NamedTuple):
    """What is known of a block once it is full."""

    number: int
    """Number of the block, from 0; its first byte is at ``number * BLOCK_SIZE``."""
    digest: bytes
    """XXH3-128 of its bytes."""
    spine: bytes
    """Spine with this block included."""
    newlines: int
    """Newlines from the start of the resource to the end of this block; 0 when they are not counted."""


# Digests of successive blocks, and the newlines that the bytes at hand have in each, unless they are not counted.
_Digested = tuple[list[bytes], list[int] | None]


class HeadHasher:
    """The running head of a resource, fed in order with its bytes.

    Each byte is hashed where it lies, once for its block and, where that is asked for, once for its chunk; nothing is
    kept of the data. Not safe for concurrent use.
    """

    __slots__ = ("_blocks", "_counting", "_ends_with_newline", "_newlines", "_open", "_open_size", "_spine")

    def __init__(self, *, count_newlines: bool = False) -> None:
        """Start at the empty resource.

        Args:
            count_newlines: Whether newlines are counted, which costs several times what the hash costs; needed for line
                access only. Without it :attr:`newlines` stays 0.
        """
        self._spine = EMPTY_SPINE
        self._blocks = 0
        self._open = xxh3_128()
        self._open_size = 0
        self._counting = count_newlines
        self._newlines = 0
        self._ends_with_newline = False

    @classmethod
    def resume(
        cls,
        *,
        spine: bytes,
        blocks: int,
        open_block: Buffer = b"",
        newlines: int = 0,
        ends_with_newline: bool | None = None,
        count_newlines: bool = False,
    ) -> HeadHasher:
        """Continue where another hasher stood.

        Args:
            spine: Spine over the first ``blocks`` blocks, 16 bytes.
            blocks: Number of full blocks.
            open_block: The bytes behind them, fewer than a block.
            newlines: Newlines below the size reached, those of the open block included.
            ends_with_newline: Whether the last byte is a newline. Read from ``open_block`` when that has bytes; must be
                given when it has none, newlines are counted and there are full blocks.
            count_newlines: Whether newlines are counted from here on.

        Raises:
            ValueError: The arguments do not describe a state that a hasher can have.
        """
        open_block = flat(open_block)
        if len(spine) != DIGEST_SIZE or blocks < 0 or newlines < 0 or len(open_block) >= BLOCK_SIZE:
            raise ValueError(
                f"a spine of {len(spine)} bytes over {blocks} blocks, and {len(open_block)} bytes behind them"
            )
        if count_newlines and ends_with_newline is None and blocks and not open_block:
            raise ValueError("whether the last byte ends a line is unknown")
        hasher = cls(count_newlines=count_newlines)
        hasher._spine = bytes(spine)
        hasher._blocks = blocks
        hasher._open.update(open_block)
        hasher._open_size = len(open_block)
        hasher._newlines = newlines if count_newlines else 0
        hasher._ends_with_newline = open_block[-1] == NEWLINE if open_block else bool(ends_with_newline)
        return hasher

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._blocks * BLOCK_SIZE + self._open_size

    @property
    def newlines(self) -> int:
        """Newlines so far; 0 when they are not counted."""
        return self._newlines

    @property
    def ends_with_newline(self) -> bool:
        """Whether the last byte is a newline; false for the empty resource."""
        return self._ends_with_newline

    @property
    def spine(self) -> bytes:
        """Spine over the full blocks, 16 bytes."""
        return self._spine

    @property
    def blocks(self) -> int:
        """Number of full blocks."""
        return self._blocks

    def open_digest(self) -> bytes:
        """Return the digest of the open block, 16 bytes; empty when the open block is."""
        return self._open.digest() if self._open_size else b""

    def head(self) -> bytes:
        """Return the head of the bytes so far, 16 bytes; possible at any time, for a microsecond."""
        return make_head(self._spine, self.open_digest(), self.size)

    def copy(self) -> HeadHasher:
        """Return an independent hasher in the same state; costs less than a kilobyte."""
        other = HeadHasher.__new__(HeadHasher)
        other._spine = self._spine
        other._blocks = self._blocks
        other._open = self._open.copy()
        other._open_size = self._open_size
        other._counting = self._counting
        other._newlines = self._newlines
        other._ends_with_newline = self._ends_with_newline
        return other

    def update(self, data: Buffer) -> Sequence[BlockDigest]:
        """Take the next bytes.

        Returns:
            The blocks that these bytes completed, in order.

        Raises:
            InvalidArgument: ``data`` is no contiguous bytes-like object.
        """
        data = flat(data)
        length = len(data)
        if self._open_size + length < BLOCK_SIZE:
            return self._extend_open_block(data, length)
        return self._complete_blocks(data, length, self._digest_blocks(data, length))

    def update_hashed(self, data: Buffer) -> tuple[bytes, Sequence[BlockDigest]]:
        """Take the bytes of a chunk, and return its hash with the blocks that it completed.

        Large chunks are hashed for both in turn, so that the second time finds the bytes in the processor's cache.

        Raises:
            InvalidArgument: ``data`` is no contiguous bytes-like object.
        """
        data = flat(data)
        length = len(data)
        if length < BLOCK_SIZE:
            return chunk_hash(data), self.update(data)
        chunk = xxh3_128()
        digested = self._digest_blocks(data, length, chunk)
        return _hash_of(chunk), self._complete_blocks(data, length, digested)

    def update_verified(self, data: Buffer, hash: bytes) -> Sequence[BlockDigest]:
        """Take the bytes of a chunk, if they have its hash, as :meth:`update` does; see :meth:`update_hashed`.

        Raises:
            IntegrityError: They do not have it; the state is what it was.
            InvalidArgument: ``data`` is no contiguous bytes-like object.
        """
        data = flat(data)
        length = len(data)
        if length < BLOCK_SIZE:
            verify_data(data, hash, self.size)
            return self.update(data)
        chunk = xxh3_128()
        digested = self._digest_blocks(data, length, chunk)
        if _hash_of(chunk) != hash:
            raise mismatch(length, self.size)
        return self._complete_blocks(data, length, digested)

    def _extend_open_block(self, data: Buffer, length: int) -> Sequence[BlockDigest]:
        if length:
            self._open.update(data)
            self._open_size += length
            self._ends_with_newline = data[-1] == NEWLINE
            if self._counting:
                self._newlines += count_newlines(data)
        return ()

    def _digest_blocks(self, data: Buffer, length: int, chunk: xxh3_128 | None = None) -> _Digested:
        """Return what is known of the blocks that ``data`` would complete; changes nothing but ``chunk``.

        Args:
            data: The next bytes, which reach to the end of a block at least.
            length: Number of them.
            chunk: Is fed with all of them.
        """
        view = memoryview(data)
        position = BLOCK_SIZE - self._open_size
        piece = view[:position]
        if chunk is not None:
            chunk.update(piece)
        if self._open_size:
            block = self._open.copy()
            block.update(piece)
            digests = [block.digest()]
        elif chunk is not None:
            # The chunk has had this block only, so far.
            digests = [chunk.digest()]
        else:
            digests = [xxh3_128_digest(piece)]
        counts = [count_newlines(piece)] if self._counting else None
        while position < length:
            group = view[position : position + _GROUP_SIZE]
            position += _GROUP_SIZE
            if chunk is not None:
                chunk.update(group)
            # The last one first: of those that the chunk was just fed with it is the one in the processor's cache.
            starts = range(len(group) // BLOCK_SIZE * BLOCK_SIZE - BLOCK_SIZE, -1, -BLOCK_SIZE)
            if counts is None:
                found = [xxh3_128_digest(group[start : start + BLOCK_SIZE]) for start in starts]
            else:
                found, numbers = [], []
                for start in starts:
                    piece = group[start : start + BLOCK_SIZE]
                    found.append(xxh3_128_digest(piece))
                    numbers.append(count_newlines(piece))
                counts += reversed(numbers)
            digests += reversed(found)
        return digests, counts

    def _complete_blocks(self, data: Buffer, length: int, digested: _Digested) -> list[BlockDigest]:
        """Go behind the blocks that ``data`` completes, and take the rest of it into the open block."""
        digests, counts = digested
        completed = []
        first = number = self._blocks
        spine, newlines = self._spine, self._newlines
        for digest in digests:
            spine = xxh3_128_digest(spine + digest)
            if counts is not None:
                newlines += counts[number - first]
            completed.append(_new_tuple(BlockDigest, (number, digest, spine, newlines)))
            number += 1
        position = len(digests) * BLOCK_SIZE - self._open_size
        self._blocks, self._spine, self._newlines = number, spine, newlines
        if self._open_size:
            self._open.reset()
            self._open_size = 0
        self._ends_with_newline = data[-1] == NEWLINE
        if position < length:
            self._extend_open_block(memoryview(data)[position:], length - position)
        return completed


def _hash_of(chunk: xxh3_128) -> bytes:
    """Return the hash of a chunk of more than 240 bytes: from there on XXH3-64 is the lower half of XXH3-128."""
    return chunk.digest()[-HASH_SIZE:]


def head_of(data: Buffer) -> bytes:
    """Return the head of a resource with exactly these bytes, 16 bytes."""
    hasher = HeadHasher()
    hasher.update(data)
    return hasher.head()


def hash_file(source: BinaryIO | Path | str, *, limit: int | None = None, count_newlines: bool = False) -> HeadHasher:
    """Read a file, from its current position if it is open, and return the hasher at its end.

    Blocking; memory use does not depend on the size of the file. A file object that is handed in stays open, behind the
    last byte that was read.

    Args:
        source: A binary file object or a path.
        limit: Largest number of bytes to read; ``None`` for all. A shorter file is no error: compare the hasher's size.
        count_newlines: Whether newlines are counted.

    Raises:
        OSError: The file cannot be read.
        InvalidArgument: The file object gives text.
    """
    if isinstance(source, (str, Path)):
        with open(source, "rb", buffering=0) as file:
            return hash_file(file, limit=limit, count_newlines=count_newlines)
    hasher = HeadHasher(count_newlines=count_newlines)
    while limit is None or hasher.size < limit:
        data = source.read(_READ_SIZE if limit is None else min(_READ_SIZE, limit - hasher.size))
        if not data:
            break
        hasher.update(data)
    return hasher


def head_of_file(source: BinaryIO | Path | str, *, limit: int | None = None) -> bytes:
    """Return the head of a file, 16 bytes; see :func:`hash_file`."""
    return hash_file(source, limit=limit).head()
