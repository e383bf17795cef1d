"""The real command in processes of its own: the server and its clients."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from cells import Transport

COMMAND = (sys.executable, "-m", "tailrace")
DEADLINE = 100.0
"""Longest time for anything to happen in another process or behind plain HTTP, in seconds."""


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment for a command: this one without its settings, and without a settings file in reach."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TAILRACE_") or name.startswith("TAILRACE_SABOTEUR")
    }
    return {**kept, "TAILRACE_SERVE_LOG_LEVEL": "warning", "PYTHONUNBUFFERED": "1", **more}


def read_line(stream: IO[bytes], process: subprocess.Popen[bytes]) -> bytes:
    """Return the next line of a pipe that was opened unbuffered.

    Raises:
        AssertionError: It does not come in time, or the process ended before.
    """
    line = b""
    deadline = time.monotonic() + DEADLINE
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        ready, _, _ = select.select([stream], [], [], max(0.0, left))
        assert ready, f"no line came in time, only {line!r}"
        byte = stream.read(1)
        if not byte:
            raise AssertionError(f"the process ended with {process.wait(DEADLINE)} after {line!r}")
        line += byte
    return line


class ServerProcess:
    """``tailrace serve`` on a folder, which can be stopped, killed and started again."""

    def __init__(
        self, data: Path, folder: Path, options: Mapping[str, object], *, ports: tuple[int, int] = (0, 0)
    ) -> None:
        """Describe the server.

        Args:
            data: Folder of the resources.
            folder: Working folder, where what the server logs is kept.
            options: Settings of the storage.
            ports: Where it listens for gRPC and for HTTP; 0 is another port with each start.
        """
        self.data = data
        self._grpc, self._http = (f"127.0.0.1:{port}" for port in ports)
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "server.log"
        self.urls: dict[str, str] = {}

    @property
    def pid(self) -> int:
        """Id of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written on its standard error, over all its starts."""
        return self._log.read_text("utf-8", "replace")

    def start(self, *, command: Sequence[str] = COMMAND, env: Mapping[str, str] | None = None) -> None:
        """Start and wait until both transports listen.

        Args:
            command: The command that has `serve`.
            env: More variables of its environment.
        """
        settings = {f"TAILRACE_STORAGE_{name.upper()}": str(value) for name, value in self._options.items()}
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [*command, "serve", "--json", "--data", self.data, "--grpc", self._grpc, "--http", self._http],
                cwd=self._folder,
                env=environment(self._folder, **settings, **(env or {})),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        assert self._process.stdout is not None
        try:
            ready = json.loads(read_line(self._process.stdout, self._process))
        except AssertionError as error:
            raise AssertionError(f"{error}; it has logged:\n{self.log[-5000:]}") from None
        assert ready.pop("event") == "ready"
        self.urls = ready

    def url(self, transport: Transport) -> str:
        """Return the URL of a transport."""
        return self.urls["grpc" if transport is Transport.GRPC else "ws"]

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE)
        self._close_output()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it in order, and return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(DEADLINE)
        self._close_output()
        return code

    def dispose(self) -> None:
        """End it for good, however it is."""
        if self._process is not None:
            if self._process.poll() is None:
                self.kill()
            self._close_output()

    def _close_output(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()


def run(
    folder: Path, *arguments: object, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end and return what it wrote."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=environment(folder, **(env or {})),
        input=stdin,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )


def spawn(folder: Path, *arguments: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a command with unbuffered pipes; it belongs to the caller, who uses it as a context manager."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=environment(folder, **(env or {})),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
