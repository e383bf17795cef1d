"""Noticing that a process, which need not be a child, has ended."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

from tailrace_common_api import InvalidArgument


class ProcessExit:
    """Whether one process has ended; on Linux with a call back at that moment.

    A process that has ended and was not yet waited for by its parent counts as ended where the system can tell (Linux).
    Belongs to the event loop on which it is made.
    """

    __slots__ = ("_descriptor", "_ended", "_on_exit", "_pid")

    def __init__(self, pid: int, on_exit: Callable[[], None]) -> None:
        """Watch the process ``pid``.

        Args:
            pid: Id of a process; one that does not exist has ended.
            on_exit: Called at most once, on the loop, when the process ends; never where there is no notification.

        Raises:
            InvalidArgument: ``pid`` is not positive.
        """
        if pid < 1:
            raise InvalidArgument(field="until_exit", problem=f"{pid} is no process id")
        self._pid = pid
        self._on_exit = on_exit
        self._ended = False
        self._descriptor: int | None = None
        if sys.platform == "linux":
            try:
                self._descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                self._ended = True
            except OSError:
                pass  # An old kernel, or a sandbox that forbids it: asked for at each look instead.
            else:
                asyncio.get_running_loop().add_reader(self._descriptor, self._exited)

    @property
    def notifies(self) -> bool:
        """Whether the end will be told through the call back; else it is to be asked for."""
        return self._descriptor is not None

    def ended(self) -> bool:
        """Return whether the process has ended."""
        if not self._ended and self._descriptor is None:
            try:
                os.kill(self._pid, 0)
            except ProcessLookupError:
                self._ended = True
            except PermissionError:
                pass  # It lives and is somebody else's.
        return self._ended

    def close(self) -> None:
        """Stop watching. Harmless when repeated."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _exited(self) -> None:
        self._ended = True
        self.close()
        self._on_exit()
