"""The real server, in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from processes import Usage, usage_of

__all__ = ["ServerProcess", "Usage", "usage_of"]

TAILRACE = ("-m", "tailrace")
"""Arguments of the interpreter that make it the command line."""


def keep_byte_code(folder: Path) -> dict[str, str]:
    """Return what the environment of a server says that keeps its byte code, below ``folder``.

    As one does that is installed: without it each start compiles all modules again wherever the environment asks Python
    to write none.
    """
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


class ServerProcess:
    """`tailrace serve` on a scratch folder and free ports."""

    def __init__(
        self,
        data: Path,
        *,
        config: Path | None = None,
        settings: Mapping[str, str] | None = None,
        program: Sequence[str] = TAILRACE,
        log: Path | None = None,
    ) -> None:
        """Describe the server.

        Args:
            data: Its folder.
            config: Its settings file, if it has one.
            settings: Settings as variables of the environment, such as ``TAILRACE_STORAGE_DURABILITY``.
            program: Arguments of the interpreter, for a program that ends in the command line.
            log: File for what it says; ``None`` for standard error.
        """
        self._data = data
        self._environment = dict(settings or {})
        if config is not None:
            self._environment["TAILRACE_CONFIG"] = str(config)
        self._program = tuple(program)
        self._log = log
        self.urls: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, at the addresses of the last time if there was one; return when it is ready."""
        addresses = {
            name: urlsplit(self.urls[name]).netloc if self.urls else "127.0.0.1:0" for name in ("grpc", "http")
        }
        command = [sys.executable, *self._program, "serve", "--data", str(self._data), "--json"]
        command += ["--grpc", addresses["grpc"], "--http", addresses["http"]]
        with nullcontext() if self._log is None else self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **self._environment}
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self._process.wait()} before it was ready")
        self.urls = {name: url for name, url in json.loads(line).items() if name != "event"}

    def stop(self) -> None:
        """End it in order, or else by force."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._reap()

    def _reap(self) -> None:
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
