"""rclone, which copies files to and from nearly everything; here from and to itself."""

from __future__ import annotations

from typing import ClassVar

from peers.driven_peer import DrivenPeer, find_program, missing_program
from peers.processes import CommandClient, PeerProcess, free_port
from peers.programs import rclone_client


class Rclone(DrivenPeer):
    """`rclone serve webdav` on a folder, driven by `rclone rcat` and `rclone cat` through pipes.

    Both sides are Go. Each operation is a process of its own, whose start is part of the time. The client is told the
    size in advance; without it, rclone spools what comes through a pipe before it sends any. A line is a write into the
    pipe; rclone reads more at once.
    """

    name: ClassVar[str] = "rclone (WebDAV)"
    does_less: ClassVar[str] = "no hash on the wire, no live readers, no resuming, no sync to disk; told the size"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download", "lines"})

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_program("rclone")

    async def _start(self) -> CommandClient:
        stored = self._scratch / "stored"
        stored.mkdir()
        port = free_port()
        program = find_program("rclone") or "rclone"
        command = [program, "serve", "webdav", str(stored), "--addr", f"127.0.0.1:{port}", "--config", ""]
        await self._serve(PeerProcess([*command, "--dir-cache-time", "0"], self.log("server")), port=port)
        return CommandClient(rclone_client.Client({"port": port, "program": program}))

    async def delete(self, handle: str) -> None:
        """Remove the file."""
        (self._scratch / "stored" / handle).unlink()
