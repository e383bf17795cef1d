"""File-system notification through ``watchfiles``, which comes with the extra ``watch``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import watchfiles

# How often the watcher looks for what the system reported, and how long it gathers, in milliseconds.
_STEP = 10
_GATHER = 40


async def watch_file(path: Path, on_change: Callable[[], None]) -> None:
    """Call ``on_change`` on the loop whenever a file is made, written, renamed or removed, until cancelled.

    Watches the folder of ``path``, and that of the file behind it if ``path`` is a symbolic link.

    Raises:
        OSError: A folder does not exist or cannot be watched.
        RuntimeError: The system gives no notification.
    """
    folders, names = await asyncio.to_thread(_watched, path)
    changes = watchfiles.awatch(
        *folders,
        watch_filter=lambda _change, name: name in names,
        debounce=_GATHER,
        step=_STEP,
        recursive=False,
    )
    async for _ in changes:
        on_change()


def _watched(path: Path) -> tuple[set[str], set[str]]:
    """Return the folders to watch and the names under which changes of the file are reported there."""
    named = os.path.join(os.path.realpath(path.parent), path.name)
    real = os.path.realpath(path)
    return {os.path.dirname(named), os.path.dirname(real)}, {named, real}
