"""tus, the protocol of resumable uploads, by its own server and two of its clients."""

from __future__ import annotations

import json
from typing import ClassVar

from peers.driven_peer import DrivenPeer, missing_node, missing_python
from peers.processes import NODE, ClientProcess, PeerProcess, node_program

MEBIBYTE = 1024 * 1024


class TusJavaScript(DrivenPeer):
    """@tus/server with its file store, driven by tus-js-client in Node.js.

    The client reads a stream, as an upload whose end is not there yet must be read, and sends a request for each 16 MiB
    of it; the server acknowledges requests, so that a line that shall be stored is a request of its own. A download is
    a GET, which the server has beyond the protocol.
    """

    name: ClassVar[str] = "tus (tus-js-client)"
    does_less: ClassVar[str] = "no hash, no live readers, no sync to disk"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download", "lines"})
    chunk: ClassVar[int] = 16 * MEBIBYTE

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_node("@tus/server", "@tus/file-store", "tus-js-client")

    async def _serve_tus(self) -> dict[str, int]:
        stored = self._scratch / "stored"
        stored.mkdir()
        server = PeerProcess([*node_program("tus_server.mjs"), stored], self.log("server"), folder=NODE)
        await self._serve(server)
        return {"port": json.loads(await server.read_line())["port"], "chunk": self.chunk}

    async def _start(self) -> ClientProcess:
        return ClientProcess.node("tus", await self._serve_tus(), self.log("client"))

    async def delete(self, handle: str) -> None:
        """Remove the file and what the server keeps beside it."""
        name = handle.rpartition("/")[2]
        for file in (self._scratch / "stored").glob(f"{name}*"):
            file.unlink()


class TusPython(TusJavaScript):
    """The same server, driven by tuspy: a new connection for each request, as it has them."""

    name: ClassVar[str] = "tus (tuspy)"

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_node("@tus/server", "@tus/file-store") or missing_python("tusclient")

    async def _start(self) -> ClientProcess:
        return ClientProcess.python("tus_client", await self._serve_tus(), self.log("client"))
