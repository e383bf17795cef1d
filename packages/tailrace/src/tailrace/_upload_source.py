"""The input of `tailrace upload`: its bytes as they come, from any offset where it can be read again."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from tailrace._input import StoppableInput
from tailrace_impl_common import GrowingFile, SourceRestarted, Transcoder, iter_source

Pieces = AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSource:
    """Where bytes come from, and what is done to them."""

    path: str | None
    """File; ``None`` for standard input."""
    encoding: str | None
    """Encoding of the input, which becomes UTF-8; ``None`` to take its bytes as they are."""
    follow: bool
    """Whether the file is followed as it grows."""
    until_exit: int | None
    """Process whose end ends the following; ``None`` for none."""

    @property
    def readable_again(self) -> bool:
        """Whether it gives the same bytes when it is read again: whether it is a file, and no pipe."""
        return self.path is not None and (self.follow or os.path.isfile(self.path))

    def __str__(self) -> str:
        name = "standard input" if self.path is None else os.path.abspath(self.path)
        return name if self.encoding is None else f"{name} ({self.encoding})"

    def known_size(self) -> int | None:
        """Return how many bytes the upload will probably have; ``None`` when that is not known. Blocking."""
        if self.follow or self.path is None or self.encoding is not None:
            return None
        return os.stat(self.path).st_size or None

    async def prefix(self, size: int) -> Pieces:
        """Yield the first bytes, ``size`` of them, or fewer where there are no more.

        Raises:
            OSError: The file cannot be read.
        """
        assert self.path is not None
        try:
            file = await asyncio.to_thread(open, self.path, "rb", 0)
        except FileNotFoundError:
            return
        try:
            async with aclosing(_transcoded(_bytes_of(iter_source(file)), self.encoding)) as pieces:
                async for piece in pieces:
                    yield piece[:size]
                    size -= min(size, len(piece))
                    if not size:
                        return
        finally:
            await asyncio.to_thread(file.close)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[tuple[Callable[[int], Pieces], Callable[[], None]], None]:
        """Open the input; yield what gives its bytes from an offset on, and what ends it early.

        The offset must be 0 where it cannot be read again.
        """
        if self.follow:
            assert self.path is not None
            file = GrowingFile(self.path, until_exit=self.until_exit)
            yield lambda start: _behind(start, _transcoded(_file_pieces(file), self.encoding)), file.stop
            return
        if self.path is None:
            descriptor = sys.stdin.fileno()
        else:
            # Opening a pipe without waiting for its writer; a file does not care.
            descriptor = await asyncio.to_thread(os.open, self.path, os.O_RDONLY | os.O_NONBLOCK)
        source = StoppableInput(descriptor)

        def pieces(start: int) -> Pieces:
            if start and self.encoding is None:
                os.lseek(descriptor, start, os.SEEK_SET)
                start = 0
            return _behind(start, _transcoded(_thread_pieces(source, self.path or "standard input"), self.encoding))

        try:
            yield pieces, source.stop
        finally:
            source.close()


async def _behind(start: int, pieces: Pieces) -> Pieces:
    """Yield what comes behind the first bytes."""
    async with aclosing(pieces):
        async for piece in pieces:
            if len(piece) > start:
                yield piece[start:] if start else piece
            start -= min(start, len(piece))


async def _file_pieces(file: GrowingFile) -> Pieces:
    async with aclosing(file.pieces()) as pieces:
        async for piece in pieces:
            # Under the policy in use, a file that was rotated is an error instead.
            assert not isinstance(piece, SourceRestarted)
            yield piece


async def _thread_pieces(source: StoppableInput, name: str) -> Pieces:
    async with aclosing(_bytes_of(iter_source(_named_pieces(source, name)))) as pieces:
        async for piece in pieces:
            yield piece


async def _bytes_of(pieces: AsyncGenerator[bytes | bytearray | memoryview, None]) -> Pieces:
    async with aclosing(pieces):
        async for piece in pieces:
            yield bytes(piece)


def _named_pieces(source: StoppableInput, name: str) -> Generator[bytes, None, None]:
    """Let errors say which input could not be read."""
    try:
        yield from source.pieces()
    except OSError as error:
        error.filename = error.filename or name
        raise


async def _transcoded(pieces: Pieces, encoding: str | None) -> Pieces:
    transcoder = None if encoding is None else Transcoder(encoding)
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece if transcoder is None else transcoder.feed(piece)
    if transcoder is not None:
        yield transcoder.finish()
