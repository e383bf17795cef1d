"""What processes have used: processor time and memory, from the kernel's tables."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PROCESS_CLOCK = 2
"""Clock of everything that a process has run, in the kernel's numbering of the clocks of another process."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes have used."""

    cpu: float
    """Processor time of all of them, in seconds."""
    peak: int
    """Largest resident memory of each since it was last reset, summed up, in bytes."""


def usage_of(*pids: int) -> Usage:
    """Return what processes have used; those that have ended count for nothing."""
    cpu, peak = 0.0, 0
    for pid in pids:
        try:
            # To the nanosecond, where the tables count in hundredths of a second.
            cpu += time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)
            peak += _memory(pid, "VmHWM")
        except OSError:
            continue
    return Usage(cpu, peak)


def resident(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    return _memory(pid, "VmRSS")


def reset_peaks(pids: Iterable[int]) -> None:
    """Let the largest memory of processes be counted from what they have at the moment."""
    for pid in pids:
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        except OSError:
            continue  # Not allowed, or ended: the figure is then the one since the start.


def children_of(pid: int) -> list[int]:
    """Return the ids of a process and of all its descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def _memory(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0  # It has ended, and nobody has asked for its exit code.


OURSELVES = (os.getpid(),)
"""This process, as whose memory and time the clients' are counted."""
