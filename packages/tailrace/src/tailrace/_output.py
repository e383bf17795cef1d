"""Where the bytes of a resource go: standard output or a file."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

import click

from tailrace._messages import printable
from tailrace._progress import Report
from tailrace_client_download_api import DataChunk
from tailrace_common_api import TailraceError
from tailrace_impl_common import DescriptorWriter

STANDARD = "-"
"""What stands for standard input or output among file names."""


async def write_chunks(
    chunks: AsyncGenerator[DataChunk, None], path: str | None, *, report: Report | None = None
) -> None:
    """Write the bytes of a stream as they come, to standard output or to a file that must not exist yet.

    Args:
        chunks: The stream; closed at the end.
        path: The file; ``None`` or ``-`` for standard output.
        report: Told how many bytes came.

    Raises:
        click.UsageError: The file exists.
        BrokenPipeError: Nobody reads standard output any more; noticed at once, without having to write.
        OSError: The file cannot be written.
    """
    if path is None or path == STANDARD:
        async with standard_output() as writer:
            await _copy(chunks, writer, report)
        return
    try:
        descriptor = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise click.UsageError(f"{printable(path)} exists; it is left as it is") from None
    writer = DescriptorWriter(descriptor)
    try:
        await _copy(chunks, writer, report)
    except TailraceError:
        raise  # Some are errors of the operating system as well; they are not about the file.
    except OSError as error:
        error.filename = error.filename or path
        raise
    finally:
        await writer.close()


def refuse_existing(path: str | None) -> None:
    """Refuse a file that exists before anything is asked of a server.

    Raises:
        click.UsageError: It exists.
    """
    if path is not None and path != STANDARD and os.path.lexists(path):
        raise click.UsageError(f"{printable(path)} exists; it is left as it is")


def _is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


@asynccontextmanager
async def standard_output() -> AsyncGenerator[DescriptorWriter, None]:
    """Yield what writes to standard output; what is handed to it last is to be flushed.

    Raises:
        BrokenPipeError: Nobody reads it any more; noticed at once, without having to write.
        OSError: It cannot be written.
    """
    sys.stdout.flush()
    descriptor = sys.stdout.fileno()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    closed = False

    def notice() -> None:
        nonlocal closed
        closed = True
        loop.remove_reader(descriptor)
        if task is not None:
            task.cancel()

    writer = DescriptorWriter(descriptor)
    # Nothing is ever read from the writing end of a pipe; it becomes readable when the last reader is gone.
    watched = _is_pipe(descriptor)
    if watched:
        loop.add_reader(descriptor, notice)
    try:
        yield writer
    except asyncio.CancelledError:
        if closed:
            raise BrokenPipeError from None
        raise
    except TailraceError:
        raise  # As in write_chunks.
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise
    finally:
        if watched and not closed:
            loop.remove_reader(descriptor)
        writer.release()


async def _copy(chunks: AsyncGenerator[DataChunk, None], writer: DescriptorWriter, report: Report | None) -> None:
    total = 0
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                await writer.write(chunk.data)
                total += len(chunk.data)
                if report is not None:
                    report(total)
                del chunk
    except TailraceError:
        # What came before the error is written all the same.
        await writer.flush()
        raise
    await writer.flush()
