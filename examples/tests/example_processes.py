"""Processes that the examples are tried with: a real server, and the clients."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# The command line of the Python client.
TAILRACE = (sys.executable, "-m", "tailrace")


@dataclass(frozen=True)
class Server:
    """The URLs of a running server."""

    grpc: str
    ws: str
    http: str


class Process:
    """A running process with pipes; ended with the test, whatever happens."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    @property
    def stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._popen.stdout is not None
        return self._popen.stdout

    def write(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()

    def interrupt(self, signal: int) -> None:
        self._popen.send_signal(signal)

    def end(self) -> tuple[int, bytes, str]:
        """End the input, and return exit code, the rest of the output, and what was said of errors."""
        output, errors = self._popen.communicate()
        return self._popen.returncode, output, errors.decode()


# Start a process with pipes: spawn(program, *arguments).
Spawn = Callable[..., Process]
# Run a process to its successful end, and return its output: run(program, *arguments, input=b"").
Run = Callable[..., bytes]


@contextlib.contextmanager
def ended(popen: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with popen:
        try:
            yield popen
        finally:
            # A test that failed may leave its processes waiting for one another.
            popen.kill()
            for pipe in (popen.stdin, popen.stdout, popen.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


@contextlib.contextmanager
def serve(folder: Path, settings: str) -> Iterator[Server]:
    config = folder / "tailrace.toml"
    config.write_text(settings)
    addresses = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    command = (*TAILRACE, "serve", "--json", "--data", folder / "data", "--config", config, *addresses)
    # Settings may name what is in a module beside this one.
    env = {**environment(), "PYTHONPATH": str(Path(__file__).parent)}
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    with popen as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            yield Server(ready["grpc"], ready["ws"], ready["http"])
        finally:
            server.terminate()


def environment() -> dict[str, str]:
    # Settings of whoever runs the tests are not those of the tests.
    return {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
