"""Memory allocation that suits messages of a megabyte."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MEBIBYTE = 1024 * 1024

_OPTIONS = (
    (_M_MMAP_THRESHOLD, 32 * _MEBIBYTE),
    (_M_TRIM_THRESHOLD, 512 * _MEBIBYTE),
    (_M_TOP_PAD, 16 * _MEBIBYTE),
    (_M_ARENA_MAX, 1),
)

_INTERVAL = 2.0
"""Seconds between two looks at whether the process has come to rest."""
_REST = 0.02
"""Share of a processor's time below which it has."""
_WORTH = 64 * _MEBIBYTE
"""Growth from which on memory is given back at once: less of it is soon needed again, and dear when it comes anew."""
_LONG_REST = 30
"""Intervals of rest after which it is given back whatever the growth."""

_tuned = False


def malloc_is_tuned() -> bool:
    """Return whether :func:`tune_malloc` has succeeded in this process."""
    return _tuned


def tune_malloc() -> bool:
    """Let glibc keep and reuse the memory of large buffers, and return whether that was possible.

    By default glibc maps each of them anew and gives it back, so that every message touches fresh pages; that halves
    throughput. To be called first thing in a program, never in a library: it changes the whole process. Who embeds the
    server in an own program can set the same by ``MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=536870912
    MALLOC_TOP_PAD_=16777216 MALLOC_ARENA_MAX=1`` in its environment.
    """
    if sys.platform != "linux":
        return False
    try:
        # musl has neither this name nor mallopt.
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, ValueError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    global _tuned
    accepted = [mallopt(option, value) == 1 for option, value in _OPTIONS]
    _tuned = all(accepted)
    return _tuned


async def give_back_at_rest() -> None:
    """Give what malloc keeps back to the system when the process comes to rest; runs until cancelled.

    That is some seconds after the last work where it has grown by much, and a minute after it where not; never on the
    way: half a gigabyte takes some ten milliseconds, for which nothing else gets memory. Returns at once where malloc
    was not tuned, since nothing is kept then.
    """
    if not _tuned:
        return
    trim = ctypes.CDLL(None).malloc_trim
    trim.argtypes = (ctypes.c_size_t,)
    trim.restype = ctypes.c_int
    least = _resident()
    worked = False
    rested = 0
    before = time.process_time()
    while True:
        await asyncio.sleep(_INTERVAL)
        now = time.process_time()
        if now - before > _REST * _INTERVAL:
            worked = True
            rested = 0
        elif worked:
            rested += 1
            if rested >= _LONG_REST or _resident() - least > _WORTH:
                await asyncio.to_thread(trim, 0)
                least = _resident()
                worked = False
        before = now


def _resident() -> int:
    """Return how many bytes of the process are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
