"""A plain gRPC service in Python, as the tutorials have it."""

from __future__ import annotations

import json
from typing import ClassVar

from peers.driven_peer import DrivenPeer, missing_python
from peers.processes import PYTHON, ClientProcess, PeerProcess


class GrpcTutorial(DrivenPeer):
    """grpcio with generated messages: 3 MiB chunks, each with the SHA-1 of the one before, written to a file.

    Server and client block: a thread pool there, plain iterators here, as the tutorials and the documentation of grpcio
    show it. A line is a chunk of its own; the file is buffered. Malloc is tuned as ours. The chunk size is below the
    4 MiB that a gRPC message may have by default. Nothing is synced.
    """

    name: ClassVar[str] = "gRPC tutorial"
    does_less: ClassVar[str] = "no live readers, no resuming, no sync to disk"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download", "lines"})
    same_work: ClassVar[frozenset[str]] = frozenset({"download"})

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_python("grpc", "grpc_tools")

    async def _start(self) -> ClientProcess:
        stored = self._scratch / "stored"
        stored.mkdir()
        server = PeerProcess([PYTHON, "-m", "peers.programs.grpc_tutorial_server", stored], self.log("server"))
        await self._serve(server)
        port = json.loads(await server.read_line())["port"]
        return ClientProcess.python("grpc_tutorial_client", {"port": port}, self.log("client"))

    async def delete(self, handle: str) -> None:
        """Remove the file."""
        (self._scratch / "stored" / handle).unlink()
