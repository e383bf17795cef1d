"""rsync against its own daemon."""

from __future__ import annotations

import os
from typing import ClassVar

from peers.driven_peer import DrivenPeer, find_program, missing_program
from peers.processes import CommandClient, PeerProcess, free_port
from peers.programs import rsync_client

CONFIGURATION = """
address = 127.0.0.1
port = {port}
use chroot = no
pid file = {folder}/rsyncd.pid
[stored]
    path = {folder}/stored
    read only = no
    uid = {user}
    gid = {group}
"""


class Rsync(DrivenPeer):
    """`rsync --daemon` and `rsync --whole-file`: from a file to a new file, both ways, compared by XXH128 at the end.

    Each operation is a process of its own on either side, whose start is part of the time. What those of the daemon
    have used is not known, since they end with the operation. It knows files alone: what it sends has to be there as a
    whole.
    """

    name: ClassVar[str] = "rsync"
    does_less: ClassVar[str] = (
        "whole files only: no streams, no live readers; no sync to disk; its server's processor time is not known"
    )
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download"})
    same_work: ClassVar[frozenset[str]] = frozenset({"download"})

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_program("rsync")

    async def _start(self) -> CommandClient:
        stored, local = self._scratch / "stored", self._scratch / "local"
        for folder in (stored, local):
            folder.mkdir()
        port = free_port()
        configuration = self._scratch / "rsyncd.conf"
        configuration.write_text(
            CONFIGURATION.format(port=port, folder=self._scratch, user=os.geteuid(), group=os.getegid()), "utf-8"
        )
        program = find_program("rsync") or "rsync"
        command = [program, "--daemon", "--no-detach", "--config", str(configuration)]
        await self._serve(PeerProcess(command, self.log("server")), port=port)
        settings = {"port": port, "program": program, "folder": str(local)}
        return CommandClient(rsync_client.Client(settings))

    async def delete(self, handle: str) -> None:
        """Remove the file."""
        (self._scratch / "stored" / handle).unlink()
