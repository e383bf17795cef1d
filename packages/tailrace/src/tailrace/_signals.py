"""What SIGINT and SIGTERM do, from the first line of the program to its last.

Python has a handler of its own, which raises KeyboardInterrupt wherever the program is: also while an event loop is
being closed, or in the last lines of the interpreter, where nobody can catch it. So there is one handler for the whole
life of the process, and what it does is changed by assigning to an attribute, which nothing can interrupt.

`timeout` and others send a signal to a process and then to its group: one that comes again within a moment is the same.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from tailrace._exit_codes import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MOMENT = 0.05
"""Time within which the same signal counts once, in seconds; nobody types as fast."""


def end_at_once() -> None:
    """End the process, and say nothing."""
    # All that commands print is flushed at once; a buffer that is just being written could not be flushed from here.
    os._exit(ExitCode.INTERRUPTED)


class SignalHandler:
    """The one handler of a process."""

    def __init__(self) -> None:
        self.action: Callable[[], object] = end_at_once
        """What a signal does; called in the main thread, between any two instructions of it."""
        self._acted: dict[int, float] = {}

    def install(self) -> None:
        """Handle signals from now on, apart from those that whoever started the process has it ignore."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """Ignore signals from now on: the interpreter ends, and would have them kill it, whatever its exit code is."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def raising(self) -> Generator[None, None, None]:
        """Let the first signal within the block raise KeyboardInterrupt; behind it, signals end the process."""
        # One that is raised while the block is left has set it already.
        self.action = self._raise
        try:
            yield
        finally:
            self.action = end_at_once

    @contextmanager
    def handing_to(self, action: Callable[[], object]) -> Generator[None, None, None]:
        """Let signals call ``action`` within the block, those too that are otherwise ignored."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        outside, self.action = self.action, action
        try:
            yield
        finally:
            self.action = outside
            if self._handle not in before.values():
                # This is somebody else's process.
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._acted.get(number, -_MOMENT) >= _MOMENT:
            self._acted[number] = now
            self.action()

    def _raise(self) -> None:
        self.action = end_at_once
        raise KeyboardInterrupt


HANDLER = SignalHandler()
