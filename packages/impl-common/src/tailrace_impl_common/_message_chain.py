"""The chunk chain on other people's messages: bytes and the hash of the chunk before, nothing else.

Any message type that can hold two byte strings can carry a verified transfer. Each message holds the bytes of one chunk
and the hash of the chunk before it, 8 bytes, empty for the first. The transfer ends with one message of empty bytes
that holds the hash of the last chunk; for empty content it is the only message and its hash is empty. A transfer
without it was cut off.

A message says nothing of the hash of its own bytes, so a chunk is proven by the message behind it: the receiver holds
one chunk back and hands out proven bytes only. Nor does it hold an offset; its place follows from the chain. Chunks
with equal hashes are interchangeable there, so the sender cuts its bytes such that neighbours differ, which makes the
loss, the repeat and the exchange of any single message visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from tailrace_common_api import MEBIBYTE, IntegrityError
from tailrace_impl_common._blocks import HASH_SIZE, chunk_hash
from tailrace_impl_common._buffers import Buffer, flat

M = TypeVar("M")

DEFAULT_MESSAGE_CHUNK = MEBIBYTE // 2
"""Bytes of a full chunk; well below the 4 MB that gRPC accepts in a message."""


class MessageChainSender(Generic[M]):
    """Turns bytes into the messages of one verified transfer."""

    __slots__ = ("_build", "_chunk_size", "_previous")

    def __init__(self, build: Callable[[bytes, bytes], M], *, chunk_size: int = DEFAULT_MESSAGE_CHUNK) -> None:
        """Start a transfer.

        Args:
            build: Makes a message from ``(bytes, previous hash)``.
            chunk_size: Most bytes in one message, at least 1.
        """
        if chunk_size < 1:
            raise ValueError(f"chunks of {chunk_size} bytes")
        self._build = build
        self._chunk_size = chunk_size
        self._previous = b""

    def feed(self, data: Buffer) -> Iterator[M]:
        """Yield the messages that carry ``data``; nothing is held back. To be iterated to its end.

        Neighbouring chunks are equal only where bytes cannot be cut otherwise: when pieces of one or two equal bytes
        are fed one after the other.

        Raises:
            InvalidArgument: ``data`` is no contiguous bytes-like object.
        """
        data = flat(data)
        length = len(data)
        position = 0
        while position < length:
            end = min(position + self._chunk_size, length)
            chunk = bytes(data[position:end])
            own = chunk_hash(chunk)
            if own == self._previous and len(chunk) > 1:
                chunk = chunk[:-1]
                own = chunk_hash(chunk)
            message = self._build(chunk, self._previous)
            self._previous = own
            position += len(chunk)
            yield message

    def finish(self) -> M:
        """Return the message that ends the transfer."""
        return self._build(b"", self._previous)

    def messages(self, pieces: Iterable[Buffer]) -> Iterator[M]:
        """Yield the messages of a whole transfer, its end included."""
        for piece in pieces:
            yield from self.feed(piece)
        yield self.finish()


class MessageChainReceiver(Generic[M]):
    """Turns the messages of one transfer back into bytes that are proven."""

    __slots__ = ("_error", "_finished", "_hash", "_offset", "_pending", "_read")

    def __init__(self, read: Callable[[M], tuple[bytes, bytes]]) -> None:
        """Expect a transfer.

        Args:
            read: Takes ``(bytes, previous hash)`` out of a message.
        """
        self._read = read
        self._pending = b""
        self._hash = b""
        self._offset = 0
        self._finished = False
        self._error: IntegrityError | None = None

    @property
    def offset(self) -> int:
        """Bytes handed out: everything below is proven."""
        return self._offset

    @property
    def finished(self) -> bool:
        """Whether the message that ends the transfer has come."""
        return self._finished

    def feed(self, message: M) -> bytes:
        """Take the next message and return the bytes that it proves, those of the message before it.

        Raises:
            IntegrityError: The message does not follow the one before it, or comes behind the end. The transfer is
                over: so does every further call.
        """
        if self._error is not None:
            raise self._error
        data, previous = self._read(message)
        if self._finished:
            raise self._fail("a message came behind the end of the transfer")
        if previous != self._hash:
            raise self._fail(self._mismatch(data, previous))
        proven = self._pending
        self._offset += len(proven)
        self._pending = data
        if data:
            self._hash = chunk_hash(data)
        else:
            self._finished = True
        return proven

    def finish(self) -> None:
        """Check, when the peer has no more messages, that the transfer was whole.

        Raises:
            IntegrityError: It was not: it was cut off, or a message was refused.
        """
        if self._error is not None:
            raise self._error
        if not self._finished:
            raise self._fail("the messages ended without the one that ends the transfer")

    def _fail(self, problem: str) -> IntegrityError:
        self._pending = b""
        self._error = IntegrityError(offset=self._offset, problem=problem)
        return self._error

    def _mismatch(self, data: bytes, previous: bytes) -> str:
        what = f"a message of {len(data)} bytes" if data else "the end of the transfer"
        if previous and len(previous) != HASH_SIZE:
            return f"{what} holds a previous hash of {len(previous)} bytes"
        if not self._hash:
            return f"{what} names {previous.hex()} as the chunk before it and is the first to arrive"
        named = previous.hex() if previous else "no chunk"
        return f"{what} names {named} as the chunk before it, which has hash {self._hash.hex()} as it arrived"
