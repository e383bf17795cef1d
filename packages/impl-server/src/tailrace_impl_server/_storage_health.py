"""Whether the storage takes what it is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from tailrace_common_api import StorageFailure, TailraceError

_SUSPICION = 10.0
"""Time for which a failure counts when nothing is written after it, in seconds: then the next client may try."""


class StorageHealth:
    """Remembers whether the last write failed.

    A full storage is none that has failed: it can be read, and uploaders are told what is wrong. Reading does not count
    either: one damaged resource says nothing of the others.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without suspicion; ``clock`` gives seconds."""
        self._clock = clock
        self._failed_at: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the last write failed, and that was not long ago."""
        return self._failed_at is not None and self._clock() - self._failed_at < _SUSPICION

    @contextmanager
    def watched(self) -> Generator[None, None, None]:
        """Take note of how the writing within the block ends."""
        try:
            yield
        except StorageFailure as error:
            self.refused(error)
            raise
        self.written()

    def written(self) -> None:
        """Take note that something was written."""
        self._failed_at = None

    def refused(self, error: TailraceError) -> None:
        """Take note of how a write has failed."""
        if isinstance(error, StorageFailure):
            self._failed_at = self._clock()
