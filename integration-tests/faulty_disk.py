"""Disks that are full, read-only, slow or broken, for the code that writes to them: in this process, without rights."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sabotage import put

HEALED = "healed"
"""File of the control folder whose existence ends a fault."""
GATE = "gate"
"""Named pipe of the control folder: a slow write goes on when somebody opens it for writing."""


class _FaultyOs:
    """The module `os`, but for what goes to the disk."""

    def __init__(self, **overridden: Callable[..., Any]) -> None:
        self.__dict__.update(overridden)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def make_disk_faulty(kind: str, after: int, control: Path | None) -> None:
    """Let the disk of this process's storage fail.

    Args:
        kind: See `fault_points.Injection.disk`.
        after: Writes (or syncs) that still work.
        control: Where the fault is ended; ``None``: it never is.
    """
    counted = 0
    lock = threading.Lock()

    def faulty() -> bool:
        nonlocal counted
        with lock:
            counted += 1
            return counted > after and not (control is not None and (control / HEALED).exists())

    def refuse(number: int) -> None:
        if faulty():
            raise OSError(number, os.strerror(number))

    def writing(before: Callable[[], None]) -> dict[str, Callable[..., Any]]:
        def pwritev(fd: int, buffers: Sequence[bytes], offset: int) -> int:
            before()
            return os.pwritev(fd, buffers, offset)

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            before()
            return os.pwrite(fd, data, offset)

        return {"pwritev": pwritev, "pwrite": pwrite}

    def half_of_a_write(fd: int, buffers: Sequence[bytes], offset: int) -> int:
        whole = b"".join(buffers)
        if not faulty():
            return os.pwrite(fd, whole, offset)
        return os.pwrite(fd, whole[: max(1, len(whole) // 2)], offset)

    def part_of_a_write(fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data[: max(1, len(data) // 3)], offset)

    def failing_sync(fd: int) -> None:
        refuse(errno.EIO)
        os.fdatasync(fd)

    def wait_for_the_gate() -> None:
        if faulty():
            assert control is not None
            # Opening a named pipe waits for its other end.
            os.close(os.open(control / GATE, os.O_RDONLY))

    overridden: dict[str, dict[str, Callable[..., Any]]] = {
        "full": writing(lambda: refuse(errno.ENOSPC)),
        "read-only": writing(lambda: refuse(errno.EROFS)),
        "failing": {"fdatasync": failing_sync},
        "short": {"pwritev": half_of_a_write, "pwrite": part_of_a_write},
        "slow": writing(wait_for_the_gate),
    }

    from tailrace_impl_server import _positional_io

    put(_positional_io, "os", _FaultyOs(**overridden[kind]))
