"""NATS with JetStream, by its own server and nats-py."""

from __future__ import annotations

from typing import ClassVar

from peers.driven_peer import DrivenPeer, find_program, missing_program, missing_python
from peers.processes import ClientProcess, PeerProcess, free_port

CONFIGURATION = """
listen: "127.0.0.1:{port}"
max_payload: 8MB
max_pending: 1GB
jetstream {{
    store_dir: "{folder}"
    max_memory_store: 1GB
    max_file_store: 1TB
}}
"""


class NatsObjectStore(DrivenPeer):
    """NATS: whole objects through the object store, lines and live reading through a stream, both in files.

    Objects are put in chunks of 1 MiB, of which nats-py sends one at a time and waits; it hashes with SHA-256 on both
    sides. Its get uses flow control, which it answers every quarter of a second, so that a download mostly waits.
    Streams take messages of 1 MiB, eight in flight, or a line each, as many as nats-py has in flight by default; the
    follower has them pushed over another connection, without that flow control. The server syncs every two minutes.
    """

    name: ClassVar[str] = "NATS"
    does_less: ClassVar[str] = "an object has no live readers and no resuming, a stream has no hash; no sync to disk"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download", "follow", "lines", "latencies"})
    same_work: ClassVar[frozenset[str]] = frozenset({"download"})

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_program("nats-server") or missing_python("nats")

    async def _start(self) -> ClientProcess:
        port = free_port()
        configuration = self._scratch / "nats.conf"
        configuration.write_text(CONFIGURATION.format(port=port, folder=self._scratch / "stored"), "utf-8")
        program = find_program("nats-server") or "nats-server"
        await self._serve(PeerProcess([program, "-c", str(configuration)], self.log("server")), port=port)
        return ClientProcess.python(
            "nats_client", {"port": port, "in_flight": 8, "chunk": 1024 * 1024}, self.log("client")
        )
