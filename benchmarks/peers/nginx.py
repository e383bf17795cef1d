"""nginx as a store of files: PUT by its DAV module, GET as it serves any file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from peers.driven_peer import DrivenPeer, find_program, missing_program
from peers.processes import ClientProcess, PeerProcess, free_port

# Both folders are on one file system, so that a finished upload is renamed and not copied.
CONFIGURATION = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log stderr warn;
worker_processes 2;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    tcp_nodelay on;
    output_buffers 2 1m;
    keepalive_timeout 3600s;
    keepalive_requests 1000000;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    client_body_temp_path {folder}/arriving;
    proxy_temp_path {folder}/unused;
    fastcgi_temp_path {folder}/unused;
    uwsgi_temp_path {folder}/unused;
    scgi_temp_path {folder}/unused;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/stored;
        dav_methods PUT DELETE;
    }}
}}
"""


class Nginx(DrivenPeer):
    """nginx: DAV PUT and plain GET, with a blocking client of Python's standard library, which does next to nothing.

    Two worker processes, sendfile in parts of 2 MiB, bodies buffered by 1 MiB, what arrives is renamed into place; no
    access log. The client sends and receives 1 MiB at once over one kept connection. A line is a chunk of a chunked
    body. What a download is verified by, the client adds: nginx knows no hash.
    """

    name: ClassVar[str] = "nginx"
    does_less: ClassVar[str] = "no hash, no live readers, no resuming, no sync to disk"
    supports: ClassVar[frozenset[str]] = frozenset({"upload", "download", "plain_download", "lines"})

    @classmethod
    def missing(cls) -> str | None:
        """Return what is not installed that it needs, or None."""
        return missing_program("nginx")

    async def _start(self) -> ClientProcess:
        for name in ("stored", "arriving"):
            (self._scratch / name).mkdir()
        # As root, nginx would give its workers to a user that has no way into the scratch folder.
        user = "user root;" if os.geteuid() == 0 else ""
        port = free_port()
        configuration = self._scratch / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(user=user, folder=self._scratch, port=port), "utf-8")
        program = find_program("nginx") or "nginx"
        command: list[str | Path] = [program, "-p", self._scratch, "-c", configuration, "-e", "stderr"]
        await self._serve(PeerProcess(command, self.log("server")), port=port)
        return ClientProcess.here("nginx_client", {"port": port}, self.log("client"))
