"""Ending tasks."""

from __future__ import annotations

import asyncio
from typing import Any


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks unless they are done, and wait until all of them have ended.

    What they raised stays with them. A caller that is itself cancelled meanwhile waits on, since a task must not
    outlive its owner, and is told afterwards.
    """
    for task in tasks:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as exc:
            cancelled = exc
    for task in tasks:
        if not task.cancelled():
            # Asking marks it as seen: what a task says when it is not wanted any more is nobody's concern.
            task.exception()
    if cancelled is not None:
        raise cancelled
