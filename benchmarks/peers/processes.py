"""The processes of a peer: where its programs are, how they are started and stopped, and how its client is asked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

FOLDER = Path(__file__).resolve().parent
TOOLS = FOLDER.parents[1] / ".tools" / "peers"
PYTHON = TOOLS / "python" / "bin" / "python"
NODE = TOOLS / "node"

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_TOP_PAD_": "16777216",
    "MALLOC_ARENA_MAX": "1",
}
"""How the entry points of Tailrace set malloc; given to every peer, since it costs none of them anything."""
WITHOUT_POOL = {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}
"""What they tell the core of gRPC about its threads."""
_OURS = ("GRPC_EXPERIMENTS", "GRPC_VERBOSITY")
"""What this program has set for itself, and what is no peer's."""

_START_SECONDS = 30
_STOP_SECONDS = 20
_ANSWER_SECONDS = 60
"""Time for whatever a client is asked for: what takes a second, and then hangs, must not hold up all others."""
_LONGEST_ANSWER = 64 * 1024 * 1024


def free_port() -> int:
    """Return a port of the loopback interface that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def node_program(name: str) -> list[str]:
    """Return the command of a program of ``node/``.

    Its text is handed over, since Node.js looks for packages beside the file of a program; without a file, it does so
    where it stands, which is where they are (see :data:`NODE`).
    """
    return ["node", "--input-type=module", "--eval", (FOLDER / "node" / name).read_text("utf-8")]


def processes_of(pid: int) -> list[int]:
    """Return a process and everything that it started and that still runs."""
    found = [pid]
    for parent in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found.extend(int(child) for child in (thread / "children").read_text().split())
    return found


class PeerProcess:
    """A process of a peer, its malloc tuned as ours; what it prints goes to a log of its own, shown when it fails."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Describe the process; nothing is started. It stands in ``folder``, or where its log is."""
        self._command = [str(part) for part in command]
        # Where it can be had: the process ends with this one, even if this one is killed.
        self._until_death = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
        self._log = log
        self._folder = folder or log.parent
        inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
        self._environment = {**inherited, **TUNED, **environment, "PYTHONPATH": str(FOLDER.parent)}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pids(self) -> list[int]:
        """Ids of the process and its children; empty unless it runs."""
        if self._process is None or self._process.returncode is not None:
            return []
        return processes_of(self._process.pid)

    async def start(self, *, port: int | None = None) -> None:
        """Start it; with ``port``, wait until it listens there."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._until_death,
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._environment,
                cwd=self._folder,
                limit=_LONGEST_ANSWER,
            )
        try:
            if port is not None:
                await self._listens(port)
        except BaseException:
            await self.stop()
            raise

    async def _listens(self, port: int) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                if self._process is None or self._process.returncode is not None or time.monotonic() > deadline:
                    raise self.failure("does not listen") from None
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                return

    def failure(self, what: str) -> RuntimeError:
        """Return the error that says what went wrong, with the end of the log."""
        said = self._log.read_text("utf-8", "replace")[-2000:] if self._log.exists() else ""
        return RuntimeError(f"{Path(self._command[0]).name} {what}: {said.strip() or 'it says nothing'}")

    async def read_line(self) -> str:
        """Return the next line of its standard output; raise when it ends instead."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise self.failure(f"ended with {await self._process.wait()}")
        return line.decode()

    async def write_line(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        with suppress(ConnectionError):
            # One that has ended is noticed by whoever reads its answer.
            await self._process.stdin.drain()

    async def stop(self) -> None:
        """End it, softly at first, and wait until it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        # What it still prints is read, so that it cannot hang on a full pipe.
        try:
            await asyncio.wait_for(process.communicate(), _STOP_SECONDS)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


class Client(Protocol):
    """What carries out the operations of a peer."""

    @property
    def pids(self) -> list[int]:
        """Ids of its processes; empty where each operation starts its own."""

    async def start(self) -> None:
        """Start it."""

    async def stop(self) -> None:
        """End it, and wait until it is gone."""

    async def ask(self, method: str, *arguments: object) -> object:
        """Carry out an operation and return its result."""


class CommandClient:
    """A client whose every operation is a command, started from this process, which so knows what it has used."""

    def __init__(self, commands: object) -> None:
        """Take the object whose methods run the commands, and block meanwhile."""
        self._commands = commands

    @property
    def pids(self) -> list[int]:
        """No process stays."""
        return []

    async def start(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing: a command ends with its operation."""

    async def ask(self, method: str, *arguments: object) -> object:
        """Run a command in a thread; one that is cancelled runs to its end."""
        return None if method == "ready" else await asyncio.to_thread(getattr(self._commands, method), *arguments)


class ClientProcess(PeerProcess):
    """A peer's own client in a process of its own, asked by lines of JSON."""

    @classmethod
    def python(
        cls,
        module: str,
        settings: Mapping[str, object],
        log: Path,
        *,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> ClientProcess:
        """Describe a client of ``programs/`` in the peers' Python."""
        command: list[str | Path] = [PYTHON, "-m", "peers.programs.client", module, json.dumps(settings)]
        return cls(command, log, environment=environment)

    @classmethod
    def node(cls, name: str, settings: Mapping[str, object], log: Path) -> ClientProcess:
        """Describe a client of ``node/``."""
        return cls([*node_program("client.mjs"), name, json.dumps(settings)], log, folder=NODE)

    @classmethod
    def here(cls, module: str, settings: Mapping[str, object], log: Path) -> ClientProcess:
        """Describe a client of ``programs/`` that needs no product's library, in this Python."""
        return cls([sys.executable, "-m", "peers.programs.client", module, json.dumps(settings)], log)

    async def ask(self, method: str, *arguments: object) -> object:
        """Call a method of the client and return its result; raise `RuntimeError` for what it raised.

        One that does not answer is ended, and fails whatever else it is asked for.
        """
        if self._process is None:
            raise self.failure("has ended")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self.write_line(json.dumps([method, *arguments]))
                answer = json.loads(await self.read_line())
        except TimeoutError:
            failure = self.failure(f"does not answer to {method}")
            await self.stop()
            raise failure from None
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]
