"""Named points in real processes at which one is killed, stopped or told to end, and disks and clocks that misbehave.

What is to happen is data, which a test hands to a process through its environment; `faulty_process` makes it happen.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass

VARIABLE = "FAULT_INJECTION"
"""Environment variable that holds what is to happen in a process."""

STREAM_POINTS = (
    "before write",
    "in write",
    "after write",
    "between data and journal",
    "before records",
    "after records",
    "before slot",
    "in slot",
    "after slot",
    "after announce",
    "after acknowledgement",
)
"""Points of a server that it passes again and again while an upload runs, in their order."""
OPENING_POINTS = ("in creation", "before opened")
"""Points of a server at the beginning of an upload."""
FINISH_POINTS = (
    "before the end",
    "before the terminal slot",
    "in the terminal slot",
    "after the terminal slot",
    "before the catalog",
    "before the answer",
    "after the answer",
)
"""Points of a server at the end of an upload, in their order."""
CLIENT_POINTS = (
    "opened",
    "before send",
    "after send",
    "acknowledged",
    "before finish",
    "after finish",
    "finished",
)
"""Points of a client that uploads."""

BULK_POINTS = (
    "before bulk opened",
    "before staging",
    "after staging",
    "before bulk commit",
    "in bulk commit",
    "after bulk commit",
    "after bulk answer",
)
"""Points of a server while it takes a bulk, in their order."""

ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM}
"""What a process does to itself."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A process does something to itself at a point."""

    point: str
    does: str
    """One of :data:`ACTIONS`."""
    number: int = 1
    """Which time that the point is reached, counted from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """All that is to go wrong in one process."""

    faults: tuple[Fault, ...] = ()
    disk: str | None = None
    """``full``, ``read-only``, ``failing`` (no sync works), ``short`` (writes are) or ``slow``; ``None``: sound."""
    disk_after: int = 0
    """Writes or syncs that work before."""
    control: str | None = None
    """Folder for talking with the test: reports, and what heals the disk or moves the clock."""
    descriptors: int | None = None
    """Most open files of the process."""

    def environment(self) -> dict[str, str]:
        """Return it as environment variables of a process."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Injection:
        """Read what :meth:`environment` wrote; nothing goes wrong when there is none."""
        values = json.loads(os.environ.get(VARIABLE, "{}"))
        values["faults"] = tuple(Fault(**fault) for fault in values.get("faults", ()))
        return cls(**values)
