"""Real processes in which things go wrong, seen from the test: a server, and what it must not leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversations import eventually
from fault_points import Injection
from faulty_disk import GATE, HEALED
from server_process import DEADLINE, ServerProcess, environment

HERE = Path(__file__).parent
_NAMES_OF_A_RESOURCE = {"data", "journal", "resource.json"}
_CATALOG_CONNECTIONS = 3
"""One that writes and two that read: begun when there is first a use for another one, and kept from then on."""


class FaultyServer(ServerProcess):
    """``tailrace serve`` that does something to itself at a point, or whose disk fails; started again it is sound."""

    def __init__(self, data: Path, folder: Path, options: Mapping[str, object]) -> None:
        super().__init__(data, folder, options)
        self.control = folder / "control"
        self.control.mkdir(exist_ok=True)

    def start_faulty(self, injection: Injection) -> None:
        """Start it so that things go wrong."""
        self.start(command=(sys.executable, str(HERE / "faulty_command.py")), env=injection.environment())

    async def fault(self) -> str:
        """Wait until the process has done to itself what it was to do, and say what: "killed", "stopped", "exited"."""
        assert self._process is not None
        return await fault_of(self._process)

    def go_on(self) -> None:
        """Let a process that stopped itself go on."""
        os.kill(self.pid, signal.SIGCONT)

    def forget(self) -> None:
        """Take note that the process is gone."""
        assert self._process is not None
        self._process.wait(DEADLINE)
        self._close_output()

    def heal_disk(self) -> None:
        """End the fault of the disk."""
        (self.control / HEALED).touch()

    def make_gate(self) -> Path:
        """Make what slow writes wait for, and return it."""
        os.mkfifo(self.control / GATE)
        return self.control / GATE

    async def set_clock(self, offset: int) -> None:
        """Let the clock of the process jump to ``offset`` seconds from the right time."""
        order = self.control / "clock"
        order.with_suffix(".new").write_text(str(offset))
        order.with_suffix(".new").rename(order)
        os.kill(self.pid, signal.SIGUSR2)
        await eventually(lambda: not order.exists())

    async def report(self) -> Report:
        """Ask a process that has a control folder what it holds."""
        answer = self.control / "report"
        os.kill(self.pid, signal.SIGUSR1)
        await eventually(answer.exists)
        values = json.loads(answer.read_text())
        answer.unlink()
        return Report(values["tasks"], values["files"].values(), self.data)


class Report:
    """What a server process holds at a moment."""

    def __init__(self, tasks: list[str], files: Any, data: Path) -> None:
        resources = str(data / "resources")
        links = list(files)
        self.tasks = Counter(_without_numbers(name) for name in tasks)
        """How many tasks there are of each kind."""
        self.others = Counter(link.split(":")[0] for link in links if not link.startswith(resources))
        """How many descriptors there are of each kind, but for files of resources."""
        self._catalog = str(data / "catalog.sqlite")
        self.resources = Counter(link for link in links if link.startswith(resources))
        """How often each file of a resource is open."""

    def leaks(self, before: Report) -> str:
        """Return what is there and was not there before; empty when nothing is left."""
        tasks, others = self.tasks - before.tasks, self.others - before.others
        for link in [link for link in others if link.startswith(self._catalog)]:
            if self.others[link] <= _CATALOG_CONNECTIONS:
                del others[link]
        twice = {link for link, count in self.resources.items() if count > 1 or link.endswith("(deleted)")}
        return "" if not (tasks or others or twice) else f"tasks {tasks}, descriptors {others}, files {twice}"


def _without_numbers(name: str) -> str:
    return "Task" if name.startswith("Task-") else "-".join(name.split("-")[:2])


async def fault_of(process: subprocess.Popen[bytes]) -> str:
    """Wait until a process is killed, stopped or has ended, and return which; see :meth:`FaultyServer.fault`."""
    ends = {os.CLD_KILLED: "killed", os.CLD_DUMPED: "killed", os.CLD_STOPPED: "stopped", os.CLD_EXITED: "exited"}

    def wait() -> str:
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        assert found is not None
        if found.si_code == os.CLD_STOPPED:
            # Only once: it may stop again.
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG)
        return ends[found.si_code]

    async with asyncio.timeout(DEADLINE):
        return await asyncio.to_thread(wait)


def spawn_uploader(
    folder: Path, url: str, key: str, source: Path, piece: int, injection: Injection | None = None
) -> subprocess.Popen[bytes]:
    """Start the program that uploads a file under a key; it belongs to the caller."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "faulty_uploader.py"), url, key, str(source), str(piece)],
        cwd=folder,
        env=environment(folder, **(injection or Injection()).environment()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )


async def nothing_leaks(server: FaultyServer, before: Report) -> None:
    """Prove that a server without clients comes to hold what it held before they came.

    Raises:
        AssertionError: It does not.
    """
    left = ""

    async def is_clean() -> bool:
        nonlocal left
        left = (await server.report()).leaks(before)
        return not left

    try:
        await eventually(is_clean)
    except TimeoutError:
        raise AssertionError(f"the server still holds {left}") from None


def leftovers(data: Path) -> list[str]:
    """Return what is in a data folder and does not belong there when nothing is under way."""
    left = [str(path) for name in ("creating", "trash") for path in (data / name).iterdir()]
    for folder in (data / "resources").iterdir():
        left += [str(path) for path in folder.iterdir() if path.name not in _NAMES_OF_A_RESOURCE]
        left += [str(folder / name) for name in _NAMES_OF_A_RESOURCE if not (folder / name).exists()]
    return left


async def damages(data: Path) -> list[str]:
    """Return what a full verification of a folder finds that no server uses."""
    from tailrace_impl_server import FilesystemStorage
    from tailrace_server_api import Durability

    storage = FilesystemStorage(data, durability=Durability.OS)
    await storage.start()
    try:
        return [f"{each}: {damage}" async for each in storage.ids() async for damage in storage.verify(each)]
    finally:
        await storage.close()
