"""A real server, and the command line, as processes."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-P", "-m", "tailrace"]
# Settings of whoever runs the tests are not those of the tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    urls: dict[str, str]

    @property
    def grpc(self) -> str:
        return self.urls["grpc"]

    @property
    def ws(self) -> str:
        return self.urls["ws"]

    @property
    def http(self) -> str:
        return self.urls["http"]


Start = Callable[..., subprocess.Popen[bytes]]


def needs_server() -> None:
    """Skip a test where this package runs without the packages that it finds through entry points."""
    for name in ("tailrace_impl_server", "tailrace_impl_grpc", "tailrace_impl_websocket"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed beside this package")


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """Run a server on a folder of its own until the block ends; its end must be a clean one."""
    needs_server()
    command = [*PROGRAM, "serve", "--json", "--data", str(folder / "data")]
    command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready.pop("event") == "ready"
            yield Server(process, ready)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    output: bytes
    errors: str

    def json(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.output.splitlines()]


Run = Callable[..., Outcome]
