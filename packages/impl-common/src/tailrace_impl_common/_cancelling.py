"""Ending tasks."""

from __future__ import annotations

import asyncio
from pathlib import PurePath
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


def where_waits(task: asyncio.Task[Any]) -> str:
    """Return the innermost place of a task's own code, as ``FILE:LINE in FUNCTION``, for logs."""
    awaited: Any = task.get_coro()
    place = "nowhere"
    while (frame := getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)) is not None:
        place = f"{PurePath(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return place
