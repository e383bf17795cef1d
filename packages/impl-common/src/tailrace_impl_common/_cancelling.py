"""Ending tasks."""

from __future__ import annotations

import asyncio
from typing import Any


async def cancel_and_wait(task: asyncio.Future[Any]) -> None:
    """Cancel a task unless it is done, and wait until it has ended.

    What it raised stays with the task. A cancellation of the caller meanwhile is not swallowed.
    """
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        # Asking for it marks it as seen; a task that failed while it was being cancelled is nobody's concern any more.
        task.exception()
