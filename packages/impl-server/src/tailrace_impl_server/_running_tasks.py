"""Tasks that somebody waits for in the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from tailrace_common_api import TailraceError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class RunningTasks:
    """Holds the tasks of a server until each has ended. Belongs to one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, _T], name: str | None = None) -> asyncio.Task[_T]:
        """Run ``work`` to its end, whoever waits for it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Who asked for it may have left meanwhile: what it would have been told is then nobody's. A defect is logged.
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, TailraceError):
            logger.error("a task failed unexpectedly", exc_info=error)

    async def wait(self) -> None:
        """Wait until no task is left, also of those that are started meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)
