"""The peer that consists of server processes and one client process: what most of them are."""

from __future__ import annotations

import abc
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self, cast

from peers.processes import NODE, PYTHON, Client, PeerProcess


class DrivenPeer(abc.ABC):
    """A :class:`~peers.peer.Peer` whose client process is asked for each operation."""

    name: ClassVar[str]
    does_less: ClassVar[str]
    supports: ClassVar[frozenset[str]]
    same_work: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, scratch: Path) -> None:
        """Describe the peer; ``scratch`` is the folder below which it makes one of its own."""
        self._scratch = scratch / re.sub(r"[^a-zA-Z0-9]+", "-", self.name)
        self._servers: list[PeerProcess] = []
        self._client: Client | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_python()

    @abc.abstractmethod
    async def _start(self) -> Client:
        """Start the servers by :meth:`_serve`, and return the client, not yet started."""

    async def _serve(self, server: PeerProcess, *, port: int | None = None) -> None:
        self._servers.append(server)
        await server.start(port=port)

    @property
    def server_pids(self) -> list[int]:
        """Ids of the processes of the server, as they are now."""
        return [pid for server in self._servers for pid in server.pids]

    @property
    def client_pids(self) -> list[int]:
        """Ids of the processes of the client, as they are now."""
        return [] if self._client is None else self._client.pids

    def log(self, name: str) -> Path:
        """Return the file that a process of this peer may print to."""
        return self._scratch / f"{name}.log"

    async def __aenter__(self) -> Self:
        self._scratch.mkdir(parents=True)
        try:
            client = await self._start()
            await client.start()
            self._client = client
            await client.ask("ready")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.stop()
        while self._servers:
            await self._servers.pop().stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    async def ask(self, method: str, *arguments: object) -> object:
        """Have the client do something."""
        if self._client is None:
            raise RuntimeError(f"{self.name} is not running")
        return await self._client.ask(method, *arguments)

    async def upload(self, size: int) -> tuple[float, str] | None:
        """Send ``size`` bytes; return seconds and handle."""
        if "upload" not in self.supports:
            return None
        seconds, handle = cast("tuple[float, str]", await self.ask("upload", size))
        return seconds, handle

    async def download(self, handle: str, size: int, *, verify: bool = True) -> float | None:
        """Receive what an upload stored; return the seconds."""
        if "download" not in self.supports:
            return None
        return cast("float", await self.ask("download", handle, size, verify))

    async def compare(self, handle: str, size: int) -> None:
        """Compare every byte of what an upload stored."""
        await self.ask("compare", handle, size)

    async def follow(self, size: int) -> float | None:
        """Upload while another connection follows; return the seconds."""
        return cast("float", await self.ask("follow", size)) if "follow" in self.supports else None

    async def lines(self, count: int) -> float | None:
        """Send small lines one by one; return the seconds."""
        return cast("float", await self.ask("lines", count)) if "lines" in self.supports else None

    async def latencies(self, count: int, pause: float) -> list[float] | None:
        """Return seconds from each write to its reader."""
        if "latencies" not in self.supports:
            return None
        return cast("list[float]", await self.ask("latencies", count, pause))

    async def delete(self, handle: str) -> None:
        """Remove what an upload stored."""
        await self.ask("delete", handle)


def missing_python(*modules: str) -> str | None:
    """Return what lacks in the peers' Python, or None; ``modules`` are import names, besides that of what hashes."""
    if not PYTHON.exists():
        return "the peers' Python environment (scripts/setup-peers makes it)"
    folders = list(PYTHON.parents[1].glob("lib/python*/site-packages"))
    lacking = [
        module
        for module in (*modules, "xxhash")
        if not any((folder / module).exists() or list(folder.glob(f"{module}.*")) for folder in folders)
    ]
    return f"{', '.join(lacking)} in the peers' Python" if lacking else None


def missing_node(*packages: str) -> str | None:
    """Return what lacks of Node.js and of these npm packages, or None."""
    if find_program("node") is None:
        return "Node.js (the Debian package nodejs)"
    lacking = [package for package in packages if not (NODE / "node_modules" / package).is_dir()]
    return f"the npm packages {', '.join(lacking)} (scripts/setup-peers installs them)" if lacking else None


def missing_program(name: str) -> str | None:
    """Return the name of a program that is not on PATH (or where Debian puts servers), or None."""
    return None if find_program(name) else f"{name} (the Debian package of that name)"


def find_program(name: str) -> str | None:
    """Return where a program is, also where Debian puts servers."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
