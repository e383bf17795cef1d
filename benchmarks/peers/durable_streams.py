"""Durable Streams, by its reference server and two of its clients."""

from __future__ import annotations

import json
from typing import ClassVar

from peers.driven_peer import DrivenPeer, missing_node, missing_python
from peers.processes import NODE, ClientProcess, PeerProcess, node_program


class DurableStreamsJavaScript(DrivenPeer):
    """@durable-streams/server with files and LMDB, driven by @durable-streams/client in Node.js.

    Writes go through its IdempotentProducer, which its documentation recommends: batches of 16 MiB, five in flight. A
    reader of bytes follows by long polls, which the client chooses; the latency of lines is that of text as server-sent
    events, the faster way. Compression is off. The server syncs every batch, more than Tailrace does by default.
    """

    name: ClassVar[str] = "Durable Streams (npm)"
    does_less: ClassVar[str] = "no hash; but syncs every batch to disk"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download", "follow", "lines", "latencies"})
    # It hashes nothing, but a sync of every batch costs more than a hash of it.
    same_work: ClassVar[frozenset[str]] = frozenset({"upload", "follow", "lines", "latencies"})

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_node("@durable-streams/server", "@durable-streams/client")

    async def _serve_streams(self) -> dict[str, int]:
        stored = self._scratch / "stored"
        stored.mkdir()
        server = PeerProcess([*node_program("durable_streams_server.mjs"), stored], self.log("server"), folder=NODE)
        await self._serve(server)
        return {"port": json.loads(await server.read_line())["port"]}

    async def _start(self) -> ClientProcess:
        return ClientProcess.node("durable-streams", await self._serve_streams(), self.log("client"))


class DurableStreamsPython(DurableStreamsJavaScript):
    """The same server, driven by durable-streams from PyPI over httpx.

    Its append waits for the acknowledgement, so several are in flight: eight of 1 MiB, or a thousand lines, which the
    client gathers into requests. It follows by long polls.
    """

    name: ClassVar[str] = "Durable Streams (PyPI)"

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_node("@durable-streams/server") or missing_python("durable_streams")

    async def _start(self) -> ClientProcess:
        settings = {**await self._serve_streams(), "in_flight": 8, "lines_in_flight": 1000}
        return ClientProcess.python("durable_streams_client", settings, self.log("client"))
