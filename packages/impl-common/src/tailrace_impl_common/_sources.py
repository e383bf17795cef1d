"""What can be uploaded: bytes, file objects, iterables, blocking or not."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import aclosing
from typing import Protocol, runtime_checkable

from tailrace_common_api import MEBIBYTE, InvalidArgument
from tailrace_impl_common._buffers import Buffer, flat

DEFAULT_PIECE = MEBIBYTE
"""Most bytes that one piece of a source has, unless told otherwise."""

# One piece in use, one read ahead.
_PIECES_IN_FLIGHT = 2


@runtime_checkable
class Readable(Protocol):
    """A binary file object, as far as reading it goes."""

    def read(self, size: int, /) -> bytes | None:
        """Return the next bytes, at most ``size``; empty at the end."""


BlockingSource = Buffer | Readable | Iterable[Buffer]
"""Bytes, a binary file object, or an iterable of bytes."""
Source = BlockingSource | AsyncIterable[Buffer]
"""What an upload can take its bytes from."""


def read_pieces(source: BlockingSource, *, chunk_size: int = DEFAULT_PIECE) -> Generator[Buffer, None, None]:
    """Yield the bytes of a source as they come, none of them empty, each of at most ``chunk_size`` bytes.

    Blocking. A file object is asked for what is there, not for full pieces, so that a slow pipe is passed on at once;
    it is left open. A generator is closed when this iterator is. Larger buffers are cut into views, without a copy.

    Raises:
        InvalidArgument: The source is none, gives text, or is a file in non-blocking mode.
        OSError: Reading fails.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield from _cut(source, chunk_size)
    elif isinstance(source, Readable):
        yield from _read_file(source, chunk_size)
    elif isinstance(source, Iterable):
        try:
            for item in source:
                yield from _cut(item, chunk_size)
        finally:
            if inspect.isgenerator(source):
                source.close()
    else:
        raise _no_source(source)


async def iter_source(source: Source, *, chunk_size: int = DEFAULT_PIECE) -> AsyncGenerator[Buffer, None]:
    """Yield the bytes of a source as they come, none of them empty, each of at most ``chunk_size`` bytes.

    File objects and blocking iterables are read in a thread of their own, one piece ahead. When this generator is
    closed or cancelled, the thread ends with the read that it is in; a read that never returns does not keep the
    process from ending (hand in the raw file of a terminal or pipe, such as ``sys.stdin.buffer.raw``: a buffered one
    keeps its lock meanwhile). Async iterables are iterated in place and closed if they can be.

    Raises:
        InvalidArgument: The source is none, gives text, or is a file in non-blocking mode.
        OSError: Reading fails.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        for piece in _cut(source, chunk_size):
            yield piece
    elif isinstance(source, AsyncIterable):
        async with aclosing(_iterate(source, chunk_size)) as pieces:
            async for piece in pieces:
                yield piece
    elif isinstance(source, (list, tuple)):
        for piece in read_pieces(source, chunk_size=chunk_size):
            yield piece
    else:
        async with aclosing(_read_in_thread(source, chunk_size)) as pieces:
            async for piece in pieces:
                yield piece


def _cut(item: object, chunk_size: int) -> Iterator[Buffer]:
    data = flat(item)
    length = len(data)
    if length <= chunk_size:
        if length:
            yield data
        return
    view = memoryview(data)
    for start in range(0, length, chunk_size):
        yield view[start : start + chunk_size]


def _read_file(file: Readable, chunk_size: int) -> Iterator[Buffer]:
    # read() of a buffered file waits until it has all that was asked for; read1() does not. Neither does a raw read().
    read: Callable[[int], bytes | None] = getattr(file, "read1", file.read)
    while True:
        data = read(chunk_size)
        if data is None:
            raise InvalidArgument(field="source", problem="a file in non-blocking mode; set it to blocking")
        piece = flat(data)
        if not len(piece):
            return
        yield piece


async def _iterate(source: AsyncIterable[Buffer], chunk_size: int) -> AsyncGenerator[Buffer, None]:
    try:
        async for item in source:
            for piece in _cut(item, chunk_size):
                yield piece
    finally:
        if inspect.isasyncgen(source):
            await source.aclose()


class _End:
    """How a source ended: with an error, or without one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


async def _read_in_thread(source: BlockingSource, chunk_size: int) -> AsyncGenerator[Buffer, None]:
    loop = asyncio.get_running_loop()
    # Bounded by the slots; the thread takes one before it reads.
    ready: asyncio.Queue[Buffer | _End] = asyncio.Queue()
    slots = threading.Semaphore(_PIECES_IN_FLIGHT)
    abandoned = threading.Event()

    def hand_over(item: Buffer | _End) -> None:
        try:
            loop.call_soon_threadsafe(ready.put_nowait, item)
        except RuntimeError:  # The loop is closed, so nobody waits.
            abandoned.set()

    def run() -> None:
        pieces = read_pieces(source, chunk_size=chunk_size)
        error: BaseException | None = None
        try:
            while not abandoned.is_set():
                slots.acquire()
                if abandoned.is_set() or (piece := next(pieces, None)) is None:
                    break
                # What an iterable gives may be a buffer that it fills again for the next item.
                hand_over(piece if isinstance(piece, bytes) else bytes(piece))
                del piece
        except BaseException as caught:  # noqa: BLE001 - whatever it is, it belongs to who waits for the pieces
            error = caught
        try:
            pieces.close()
        except BaseException as caught:  # noqa: BLE001 - the same
            error = error or caught
        hand_over(_End(error))

    # A daemon: a thread that waits for a terminal or a pipe must not keep the process from ending.
    threading.Thread(target=run, name="tailrace-source", daemon=True).start()
    try:
        while True:
            item = await ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item
            slots.release()
    finally:
        abandoned.set()
        slots.release()


def _no_source(source: object) -> InvalidArgument:
    problem = f"{type(source).__name__} is neither bytes nor a binary file object nor an iterable of bytes"
    return InvalidArgument(field="source", problem=problem)
