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

from tailrace_impl_common._blocks import BLOCK_SIZE, DIGEST_SIZE, chunk_hash
from tailrace_impl_common._buffers import Buffer, flat
from tailrace_impl_common._chain import mismatch
from tailrace_impl_common._lines import NEWLINE, count_newlines

EMPTY_SPINE = bytes(DIGEST_SIZE)
"""The spine before the first full block."""

_READ_SIZE = 1024 * 1024
# A named tuple's own constructor takes twice as long, and there is one for each block.
_new_tuple = tuple.__new__


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


class _Digested(NamedTuple):
    """What is known of bytes that start with a block."""

    digests: list[bytes]
    """Digests of their full blocks."""
    newlines: list[int] | None
    """Newlines in each of these, unless they are not counted."""
    rest: xxh3_128 | None
    """State of the bytes behind the full blocks, if there are any."""


class HeadHasher:
    """The running head of a resource, fed in order with its bytes.

    Each byte is hashed where it lies, once; where the hash of its chunk is asked for, too, once more if the chunk is
    small or does not start with a block. Nothing is kept of the data. Not safe for concurrent use.
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
        return self._update(data, len(data))

    def _update(self, data: Buffer, length: int) -> Sequence[BlockDigest]:
        """Take the next bytes, whose length counts bytes."""
        if self._open_size + length < BLOCK_SIZE:
            # The open block takes them all, as most often with small chunks.
            if length:
                self._open.update(data)
                self._open_size += length
                self._ends_with_newline = data[-1] == NEWLINE
                if self._counting:
                    self._newlines += count_newlines(data)
            return ()
        if not self._open_size:
            return self._take(data, self._digest(data, length))
        missing = BLOCK_SIZE - self._open_size
        view = memoryview(data)
        piece = view[:missing]
        self._open.update(piece)
        digested = _Digested([self._open.digest()], [count_newlines(piece)] if self._counting else None, None)
        completed = self._take(piece, digested)
        if missing < length:
            completed += self._update(view[missing:], length - missing)
        return completed

    def update_hashed(self, data: Buffer) -> tuple[bytes, Sequence[BlockDigest]]:
        """Take the bytes of a chunk, and return its hash with the blocks that it completed.

        Raises:
            InvalidArgument: ``data`` is no contiguous bytes-like object.
        """
        data = flat(data)
        length = len(data)
        if self._open_size or length < BLOCK_SIZE:
            return chunk_hash(data), self._update(data, length)
        digested = self._digest(data, length)
        return _hash_of(data, digested), self._take(data, digested)

    def update_verified(self, data: Buffer, hash: bytes) -> Sequence[BlockDigest]:
        """Take the bytes of a chunk, if they have its hash, as :meth:`update` does.

        Raises:
            IntegrityError: They do not have it; the state is what it was.
            InvalidArgument: ``data`` is no contiguous bytes-like object.
        """
        data = flat(data)
        length = len(data)
        if self._open_size or length < BLOCK_SIZE:
            if chunk_hash(data) != hash:
                raise mismatch(length, self.size)
            return self._update(data, length)
        digested = self._digest(data, length)
        if _hash_of(data, digested) != hash:
            raise mismatch(length, self.size)
        return self._take(data, digested)

    def _digest(self, data: Buffer, length: int) -> _Digested:
        """Return what is known of the next bytes, which start with a block; changes nothing."""
        view = memoryview(data)
        full = length - length % BLOCK_SIZE
        rest = xxh3_128(view[full:]) if full < length else None
        if not self._counting:
            digests = [xxh3_128_digest(view[start : start + BLOCK_SIZE]) for start in range(0, full, BLOCK_SIZE)]
            return _Digested(digests, None, rest)
        digests, newlines = [], []
        for start in range(0, full, BLOCK_SIZE):
            block = view[start : start + BLOCK_SIZE]
            digests.append(xxh3_128_digest(block))
            newlines.append(count_newlines(block))
        return _Digested(digests, newlines, rest)

    def _take(self, data: Buffer, digested: _Digested) -> list[BlockDigest]:
        """Go behind bytes that were digested, and return the blocks in them."""
        digests, counts, rest = digested
        completed = []
        first = number = self._blocks
        spine, newlines = self._spine, self._newlines
        for digest in digests:
            spine = xxh3_128_digest(spine + digest)
            if counts is not None:
                newlines += counts[number - first]
            completed.append(_new_tuple(BlockDigest, (number, digest, spine, newlines)))
            number += 1
        self._blocks, self._spine = number, spine
        if rest is not None:
            self._open = rest
            self._open_size = len(data) % BLOCK_SIZE
            if counts is not None:
                newlines += count_newlines(memoryview(data)[-self._open_size :])
        elif self._open_size:
            self._open.reset()
            self._open_size = 0
        self._newlines = newlines
        self._ends_with_newline = data[-1] == NEWLINE
        return completed


def _hash_of(chunk: Buffer, digested: _Digested) -> bytes:
    """Return the hash of a chunk that starts with a block."""
    digests, _, rest = digested
    return chunk_hash(chunk, digests if rest is None else [*digests, rest.digest()])


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
