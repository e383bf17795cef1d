"""Memory allocation that suits messages of a megabyte."""

from __future__ import annotations

import ctypes
import os
import sys

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
