"""What becomes of records that were staged and that nobody ended: they are purged when time has passed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tailrace_common_api import TailraceError
from tailrace_impl_common import cancel_and_wait
from tailrace_server_api import RecordSink

logger = logging.getLogger(__name__)

_LOOKS = 20
"""How often is looked within one retention, where the interval allows it."""


class StagingSweeper:
    """Sweeps all sinks, one after the other, by one task. Belongs to one event loop."""

    def __init__(
        self,
        sinks: Sequence[tuple[str, RecordSink]],
        *,
        retention: float,
        result_retention: float,
        interval: float,
    ) -> None:
        """Look after ``sinks``, each with the name of its collection or queue; times are in seconds.

        Args:
            sinks: The sinks.
            retention: Age from which on what is staged is purged.
            result_retention: Age from which on results are forgotten.
            interval: Least time between two looks.
        """
        self._sinks = sinks
        self._retention = retention
        self._result_retention = result_retention
        self._interval = max(interval, retention / _LOOKS)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; does nothing without sinks."""
        if self._sinks:
            self._task = asyncio.create_task(self._run(), name="tailrace-staging-sweeper")

    async def close(self) -> None:
        """Stop. Idempotent."""
        if self._task is not None:
            task, self._task = self._task, None
            await cancel_and_wait(task)

    async def sweep(self) -> int:
        """Sweep every sink once and return how many records were purged; one that fails has its next time."""
        total = 0
        for name, sink in self._sinks:
            try:
                purged = await sink.sweep(self._retention, results_older_than=self._result_retention)
            except TailraceError as error:
                logger.warning("what is staged for %s could not be swept: %s", name, error)
            except Exception:
                logger.exception("what is staged for %s could not be swept", name)
            else:
                total += purged
                if purged:
                    logger.info("purged %d staged records of %s that nobody committed", purged, name)
        return total

    async def _run(self) -> None:
        while True:
            await self.sweep()
            await asyncio.sleep(self._interval)
