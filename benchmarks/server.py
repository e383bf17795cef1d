"""The real server, in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used."""

    cpu: float
    """Processor time, in seconds."""
    peak: int
    """Largest resident set since it started, in bytes."""


class ServerProcess:
    """`tailrace serve` on a scratch folder and free ports."""

    def __init__(self, data: Path, *, config: Path | None = None) -> None:
        """Describe the server: its folder, and its settings file if it has one."""
        self._data = data
        self._config = config
        self.urls: dict[str, str] = {}

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tailrace", "serve", "--data", str(self._data), "--json"]
        command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        more = {} if self._config is None else {"TAILRACE_CONFIG": str(self._config)}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **more})
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self._process.wait()} before it was ready")
        self.urls = {name: url for name, url in json.loads(line).items() if name != "event"}
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def usage(self) -> Usage:
        """Return what the server has used up to now."""
        return usage_of(self._process.pid)


def usage_of(pid: int) -> Usage:
    """Return what a process has used, from the kernel's tables."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / _TICKS
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return Usage(cpu, int(line.split()[1]) * 1024)
    raise RuntimeError("the kernel does not say how much memory a process has used")
