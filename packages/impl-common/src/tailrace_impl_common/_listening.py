"""The socket that a server listens to."""

from __future__ import annotations

import asyncio
import os
import socket

from tailrace_common_api import ConfigurationError

_BACKLOG = 2048
"""Connections that may wait to be accepted; systems allow fewer."""


async def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens to the first address of ``host``; port 0 for any.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    listener: socket.socket | None = None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        # Not socket.create_server(): it leaves the protocol at 0, which connections inherit, and asyncio switches off
        # Nagle's algorithm only where it reads TCP. With it, windows wait 40 ms for the acknowledgement of data.
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        return listener
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ConfigurationError(field="host", problem=f"cannot listen on {host}:{port}: {error.strerror}") from None
