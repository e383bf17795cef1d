"""Ports on which a server can be stopped and started again, without anybody else taking them in between."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a free port of the loopback interface that the system does not give to whoever asks for just any.

    It would give one of a server that is down to another server, or to a connection: even to one that its own client
    tries to make to it, which then talks to itself.
    """
    first, last = map(int, _GIVEN_AWAY.read_text().split())
    kept = [*range(max(1024, first - 16_000), first), *range(last + 1, 65_536)]
    while True:
        port = random.choice(kept) if kept else 0
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
