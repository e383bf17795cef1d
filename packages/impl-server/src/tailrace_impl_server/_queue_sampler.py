"""Figures of queues for those who watch a server: taken now and then, since a scrape cannot wait for a database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tailrace_common_api import TailraceError
from tailrace_impl_common import cancel_and_wait
from tailrace_impl_server._record_counts import RecordCounts
from tailrace_impl_server._work_dispatcher import WorkDispatcher

logger = logging.getLogger(__name__)


class QueueSampler:
    """Asks all queues how much work there is, one after the other, by one task. Belongs to one event loop."""

    def __init__(self, dispatchers: Sequence[WorkDispatcher], counts: RecordCounts, *, interval: float) -> None:
        """Tell ``counts`` the figures every ``interval`` seconds."""
        self._dispatchers = dispatchers
        self._counts = counts
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; does nothing without queues."""
        if self._dispatchers:
            self._task = asyncio.create_task(self._run(), name="tailrace-queue-sampler")

    async def close(self) -> None:
        """Stop. Idempotent."""
        if self._task is not None:
            task, self._task = self._task, None
            await cancel_and_wait(task)

    async def sample(self) -> None:
        """Ask every queue once; of one that does not answer the last figures stay."""
        for dispatcher in self._dispatchers:
            try:
                self._counts.queue(await dispatcher.figures())
            except TailraceError as error:
                logger.warning("queue %s does not tell how much work there is: %s", dispatcher.name, error)
            except Exception:
                logger.exception("queue %s does not tell how much work there is", dispatcher.name)

    async def _run(self) -> None:
        while True:
            await self.sample()
            await asyncio.sleep(self._interval)
