"""Fixtures of the tests of the examples."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_processes import Process, Run, Server, Spawn, ended, environment, serve

EXAMPLES = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), "") as server:
        yield server


@pytest.fixture(scope="session")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes and sends small chunks in small windows."""
    settings = "[grpc]\nchunk_size = 1000\n[http]\nchunk_size = 1000\n[storage]\nupload_window = 4096\n"
    with serve(tmp_path_factory.mktemp("narrow"), settings) as server:
        yield server


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of the examples, with what they need from npm."""
    assert (EXAMPLES / "node_modules").is_dir(), "scripts/setup-node was not run"
    return EXAMPLES


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    with contextlib.ExitStack() as processes:

        def start(*command: str | Path) -> Process:
            pipe = subprocess.PIPE
            popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment())
            return Process(processes.enter_context(ended(popen)))

        yield start


@pytest.fixture
def run() -> Run:
    def complete(*command: str | Path, input: bytes = b"") -> bytes:
        return subprocess.run(command, input=input, stdout=subprocess.PIPE, check=True, env=environment()).stdout

    return complete
