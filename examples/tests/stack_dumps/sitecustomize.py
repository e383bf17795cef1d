"""Imported by every Python program that has this folder in PYTHONPATH: SIGUSR1 makes it say where it stands."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys

_DEEPEST = 40


def _say_where(_number: int, _frame: object) -> None:
    """Write the stacks of all tasks to the standard error."""
    try:
        tasks = asyncio.all_tasks(asyncio.get_running_loop())
    except RuntimeError:
        tasks = set()
    for task in tasks:
        print(f"Task {task.get_name()}, cancelled {task.cancelling()} times:", file=sys.stderr)
        awaited: object = task.get_coro()
        for _ in range(_DEEPEST):
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
            if frame is None:
                break
            print(f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}", file=sys.stderr)
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
        print(f"  waits for {awaited}", file=sys.stderr, flush=True)


signal.signal(signal.SIGUSR1, _say_where)
# The threads are told of by the signal itself, wherever the program is stuck; then the handler above has its turn.
faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)
