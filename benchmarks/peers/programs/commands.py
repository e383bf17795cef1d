"""What the clients that are commands have in common: each operation is a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence

from peers.programs.contents import MEBIBYTE


def run(command: Sequence[str]) -> None:
    """Run a command to its end; raise `CalledProcessError` when it fails."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def feed(command: Sequence[str], parts: Iterable[bytes]) -> None:
    """Run a command with these bytes as its standard input, written one by one."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdin is not None
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[process.stdin.write(view) or 0 :]
        process.stdin.close()
    _expect_success(process)


def drain(command: Sequence[str], take: Callable[[memoryview], object]) -> None:
    """Run a command and hand over what it prints, in pieces of at most 1 MiB."""
    buffer = memoryview(bytearray(MEBIBYTE))
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while length := process.stdout.readinto(buffer):  # type: ignore[attr-defined]  # unbuffered, it is a raw file
            take(buffer[:length])
    _expect_success(process)


def _expect_success(process: subprocess.Popen[bytes]) -> None:
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
