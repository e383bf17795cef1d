"""Threads that write: few of them for many writers, each writer's work in order and in one thread at a time.

A strand is the queue end of one writer. Waking it puts it at the end of the line unless it stands there or runs
already; a thread takes the first of the line, lets it work off what has gathered, and puts it back at the end when it
left something over. So work that arrives while a strand runs costs no hand-over, and a busy writer does not keep the
others waiting. The flag that says "stands in line or runs" is a lock that is only ever tried, never waited for.
"""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue
from typing import Protocol

_log = logging.getLogger(__name__)


class Work(Protocol):
    """What a strand works off."""

    def run(self) -> None:
        """Do some of what is pending, a bounded amount; called by one thread at a time."""

    def pending(self) -> bool:
        """Return whether there is something to do."""


class Strand:
    """The place of one writer in the line of a pool."""

    __slots__ = ("_busy", "_line", "_work")

    def __init__(self, line: SimpleQueue[Strand | None], work: Work) -> None:
        self._line = line
        self._work = work
        self._busy = threading.Lock()

    def wake(self) -> None:
        """See to it that what is pending gets done; never waits."""
        if self._busy.acquire(blocking=False):
            self._line.put(self)

    def claim(self) -> bool:
        """Take the strand out of all threads' hands if it is idle; the caller works itself, then calls ``release``."""
        return self._busy.acquire(blocking=False)

    def release(self) -> None:
        """End what :meth:`claim` began."""
        self._busy.release()
        # Work may have come after the last look at it and before the release, when waking had no effect.
        if self._work.pending():
            self.wake()

    def run(self) -> None:
        """Work; called by a thread of the pool."""
        try:
            self._work.run()
        except Exception:  # noqa: BLE001 - one writer's defect must not end the thread that serves all of them.
            _log.exception("a writer failed unexpectedly")
        if self._work.pending():
            self._line.put(self)
        else:
            self.release()


class WriterPool:
    """A bounded number of threads for any number of strands. Threads start with the first strand."""

    def __init__(self, threads: int) -> None:
        self._line: SimpleQueue[Strand | None] = SimpleQueue()
        self._wanted = threads
        self._threads: list[threading.Thread] = []

    def strand(self, work: Work) -> Strand:
        """Return a strand for ``work``."""
        while len(self._threads) < self._wanted:
            name = f"tailrace-writer-{len(self._threads)}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return Strand(self._line, work)

    def close(self) -> None:
        """Finish what stands in line and end the threads. Blocks; no strand may be woken any more."""
        for _ in self._threads:
            self._line.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _serve(self) -> None:
        while True:
            strand = self._line.get()
            if strand is None:
                return
            strand.run()
            # An idle thread must not keep a closed writer and its buffers alive.
            del strand
