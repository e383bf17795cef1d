"""A local file that is still being written, or does not exist yet, as a source."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import importlib.util
import os
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tailrace_common_api import InvalidArgument, SourceChanged
from tailrace_impl_common._process_exit import ProcessExit
from tailrace_impl_common._sources import DEFAULT_PIECE

DEFAULT_POLL_INTERVAL = 0.1
"""Time between two looks at a file that does not report its changes, in seconds."""

# With notification, looks that find what was not reported (network file systems, lost events), in seconds.
_SAFETY_INTERVAL = 1.0
# Bytes before the position that are compared at each look. A file that was truncated and has grown past the position
# again is not shorter, but its bytes are others.
_REMEMBERED = 64

Watcher = Callable[[Path, Callable[[], None]], Awaitable[None]]
"""Calls back, on the loop, when a file changes; runs until it is cancelled or fails."""


class RotationPolicy(enum.Enum):
    """What happens when a followed file is truncated, removed, or replaced by another one of its name."""

    ERROR = "error"
    """The source ends with :class:`~tailrace_common_api.SourceChanged`."""
    RESTART = "restart"
    """The source says so with :class:`SourceRestarted` and goes on with the file of that name from its start."""
    CONTINUE = "continue"
    """The source goes on with the file of that name from its start, as if its bytes followed those before."""


@dataclass(frozen=True, slots=True)
class SourceRestarted:
    """What comes next belongs to another file, or to the same one written anew."""

    reason: str
    """What was seen."""


class _Seen(enum.Enum):
    """What a look at the file showed."""

    DATA = "it has grown"
    NOTHING_NEW = "nothing new"
    MISSING = "was removed"
    TRUNCATED = "was truncated"
    REPLACED = "was replaced by another file"


class GrowingFile:
    """The bytes of a file as they are written to it, from its start until they are told to end.

    Ends when :meth:`stop` was called, when the process ``until_exit`` has ended, or when ``until`` returns true; always
    after the last byte that the file has at that moment. A file that never came to be gives no byte. To be iterated
    once.

    A rotated file is read to its end before the next one is begun. With ``RESTART`` and ``CONTINUE``, a file that was
    only removed is waited for. What a writer still appends to a rotated file once the next one exists can be missed,
    and so can a file that came and went between two looks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        chunk_size: int = DEFAULT_PIECE,
        rotation: RotationPolicy = RotationPolicy.ERROR,
        until_exit: int | None = None,
        until: Callable[[], bool] | None = None,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        notify: bool = True,
    ) -> None:
        """Prepare to follow a file; nothing is opened yet.

        Args:
            path: The file. What it means is settled at each look, so a relative one follows the working directory.
            chunk_size: Most bytes in one piece, at least 1.
            rotation: What a truncated, removed or replaced file does.
            until_exit: Id of a process whose end ends the source; ``None`` for none.
            until: Asked at each look, on the loop; when it returns true the source ends. ``None`` for none.
            poll_interval: Time between looks without notification, and while the folder does not exist, in seconds.
            notify: Whether file-system notification is used where the extra ``watch`` is installed.

        Raises:
            InvalidArgument: ``chunk_size``, ``poll_interval`` or ``until_exit`` is not positive.
        """
        if chunk_size < 1:
            raise InvalidArgument(field="chunk_size", problem=f"{chunk_size} bytes")
        if not poll_interval > 0:
            raise InvalidArgument(field="poll_interval", problem="not a positive number of seconds")
        if until_exit is not None and until_exit < 1:
            raise InvalidArgument(field="until_exit", problem=f"{until_exit} is no process id")
        self._path = Path(path)
        self._chunk_size = chunk_size
        self._rotation = rotation
        self._until_exit = until_exit
        self._until = until
        self._poll_interval = poll_interval
        self._watcher = find_watcher() if notify else None
        self._watching = False
        self._stopped = False
        self._wake = asyncio.Event()

    def stop(self) -> None:
        """End the source behind the last byte that the file has. To be called on the loop; harmless when repeated."""
        self._stopped = True
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[bytes | SourceRestarted]:
        return self.pieces()

    async def pieces(self) -> AsyncGenerator[bytes | SourceRestarted, None]:
        """Yield the bytes of the file as they come, and :class:`SourceRestarted` between files under that policy.

        The file is read in threads, one look at a time. When the generator is closed or cancelled, the file is closed:
        at once, or by the look that is under way.

        Raises:
            SourceChanged: The file was truncated, removed or replaced, under ``ERROR``.
            InvalidArgument: The path is no regular file.
            OSError: The file cannot be read.
        """
        reader = _Reader(self._path, self._chunk_size)
        try:
            async with self._notification() as process:
                while True:
                    self._wake.clear()
                    # Asked before the look: what was written before the end is seen by the look after it.
                    ending = self._is_ending(process)
                    seen, data = await asyncio.to_thread(reader.look, ending)
                    if seen is _Seen.DATA:
                        yield data
                        del data  # No large buffer is kept while waiting.
                        continue
                    if seen is _Seen.MISSING and (ending or self._rotation is not RotationPolicy.ERROR):
                        seen = _Seen.NOTHING_NEW  # It is read to its end; the next one of its name is waited for.
                    if seen is _Seen.NOTHING_NEW:
                        if ending:
                            return
                        await self._wait(process)
                        continue
                    if self._rotation is RotationPolicy.ERROR:
                        raise SourceChanged(
                            offset=reader.position if seen is _Seen.MISSING else 0,
                            problem=f"{self._path} {seen.value} after {reader.position} bytes",
                        )
                    reader.begin_anew()
                    if self._rotation is RotationPolicy.RESTART:
                        yield SourceRestarted(f"{self._path} {seen.value}")
        finally:
            reader.close()

    def _is_ending(self, process: ProcessExit | None) -> bool:
        if (process is not None and process.ended()) or (self._until is not None and self._until()):
            self._stopped = True
        return self._stopped

    async def _wait(self, process: ProcessExit | None) -> None:
        interval = self._poll_interval
        # Ends that nobody tells of have to be asked for.
        if self._watching and self._until is None and (process is None or process.notifies):
            interval = max(_SAFETY_INTERVAL, interval)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval):
                await self._wake.wait()

    @contextlib.asynccontextmanager
    async def _notification(self) -> AsyncIterator[ProcessExit | None]:
        process = None if self._until_exit is None else ProcessExit(self._until_exit, self._wake.set)
        watching = None if self._watcher is None else asyncio.create_task(self._watch(self._watcher))
        try:
            yield process
        finally:
            if process is not None:
                process.close()
            if watching is not None:
                watching.cancel()
                # The task has nothing to say: what can fail in it is handled there.
                await asyncio.wait([watching])

    async def _watch(self, watcher: Watcher) -> None:
        while True:
            self._watching = True
            try:
                await watcher(self._path, self._wake.set)
            except (OSError, RuntimeError):
                # The folder does not exist yet, or the system has no watches left. Polling goes on meanwhile.
                pass
            finally:
                self._watching = False
            self._wake.set()
            await asyncio.sleep(self._poll_interval)


def find_watcher() -> Watcher | None:
    """Return what notifies of changes to files; ``None`` where the extra ``watch`` is not installed."""
    if importlib.util.find_spec("watchfiles") is None:
        return None
    from tailrace_impl_common._watch import watch_file

    return watch_file


class _Reader:
    """The open file. Looks happen in threads, one at a time; closing may come from another thread at any time."""

    def __init__(self, path: Path, chunk_size: int) -> None:
        self._path = path
        self._chunk_size = chunk_size
        self._file: BinaryIO | None = None
        self._identity = (0, 0)
        self._before = b""  # The bytes just below the position.
        self._end: int | None = None  # Where the file ended when the source was told to end.
        self._anew = False
        self._closed = False
        self._looking = threading.Lock()
        self.position = 0

    def look(self, ending: bool) -> tuple[_Seen, bytes]:
        """Read what comes next, or find out why there is nothing."""
        with self._looking:
            try:
                return self._look(ending)
            finally:
                self._close_if_asked()

    def begin_anew(self) -> None:
        """Let the next look open the file of that name and read it from its start."""
        self._anew = True

    def close(self) -> None:
        """Close the file, at once or when the look that is under way is done."""
        self._closed = True
        if self._looking.acquire(blocking=False):
            try:
                self._close_if_asked()
            finally:
                self._looking.release()

    def _close_if_asked(self) -> None:
        if self._closed and self._file is not None:
            self._file.close()
            self._file = None

    def _look(self, ending: bool) -> tuple[_Seen, bytes]:
        if self._closed:
            return _Seen.NOTHING_NEW, b""
        if self._anew and self._file is not None:
            self._file.close()
            self._file = None
        self._anew = False
        file = self._file or self._open()
        if file is None:
            return _Seen.NOTHING_NEW, b""
        size = os.fstat(file.fileno()).st_size
        if size < self.position or not self._same_before(file):
            return _Seen.TRUNCATED, b""
        if ending and self._end is None:
            self._end = size
        if data := self._read(file):
            return _Seen.DATA, data
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            seen = _Seen.MISSING
        else:
            if (named.st_dev, named.st_ino) == self._identity:
                return _Seen.NOTHING_NEW, b""
            seen = _Seen.REPLACED
        # The writer may have appended between the read and its going over to the next file.
        if data := self._read(file):
            return _Seen.DATA, data
        return seen, b""

    def _open(self) -> BinaryIO | None:
        try:
            # Opening a pipe would wait for a writer.
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                raise InvalidArgument(field="path", problem=f"{str(self._path)!a} is no regular file")
            file: BinaryIO = open(self._path, "rb", buffering=0)  # noqa: SIM115 - open until close()
        except FileNotFoundError:
            return None
        self._file = file
        status = os.fstat(file.fileno())
        self._identity = (status.st_dev, status.st_ino)
        self._before = b""
        self._end = None
        self.position = 0
        return file

    def _same_before(self, file: BinaryIO) -> bool:
        file.seek(self.position - len(self._before))
        return not self._before or file.read(len(self._before)) == self._before

    def _read(self, file: BinaryIO) -> bytes:
        wanted = self._chunk_size if self._end is None else min(self._chunk_size, self._end - self.position)
        if wanted < 1:
            return b""
        file.seek(self.position)
        data = file.read(wanted)
        if data:
            self.position += len(data)
            self._before = (self._before + data[-_REMEMBERED:])[-_REMEMBERED:]
        return data
