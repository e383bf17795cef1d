"""Settings of clients, and how a transport is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any
from urllib.parse import urlsplit

from tailrace_common_api._errors import ConfigurationError, TransportMissing

CLIENT_TRANSPORTS = "tailrace.client_transports"
"""Entry-point group of client transports: name is the URL scheme, value a callable ``(url, settings) -> client``."""
SERVER_TRANSPORTS = "tailrace.server_transports"
"""Entry-point group of server transports: name is the scheme, value a ``TransportServer`` factory."""
SERVERS = "tailrace.servers"
"""Entry-point group of resource servers: what `tailrace serve` runs behind the transports."""

_KNOWN_PACKAGES = {
    "grpc": "tailrace-impl-grpc",
    "grpcs": "tailrace-impl-grpc",
    "ws": "tailrace-impl-websocket",
    "wss": "tailrace-impl-websocket",
}

KIBIBYTE = 1024
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Settings of a client connection."""

    chunk_size: int | None = None
    """Bytes of a full chunk, both ways; ``None`` for what suits transport and server, and never above what the server
    announces. For what is read, less than 1 KiB counts as 1 KiB."""
    download_window: int = 8 * MEBIBYTE
    """Bytes that a server may send ahead of the reader, per request; 0 leaves it to the transport, and so does more
    than the server allows."""
    connect_timeout: float = 10.0
    """Longest time to connect and for a handshake to be answered, in seconds; of several addresses, for each."""
    answer_timeout: float = 30.0
    """Longest time for an acknowledgement or a unary answer, in seconds."""
    finish_timeout: float = 300.0
    """Longest time for the end of an upload to be acknowledged, in seconds: the server syncs it to disk first."""
    keepalive_interval: float = 20.0
    """Time between signs of life on an idle connection, in seconds."""
    keepalive_timeout: float = 20.0
    """Time after which an unanswered sign of life ends the connection, in seconds."""
    reconnect_timeout: float = 60.0
    """Time for which a connection that was lost is tried again before its operations fail, in seconds; 0: never."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that proves who this client is; ``None`` for none. A secret."""
    ca_file: str | None = None
    """PEM file of the certificate authorities that servers are checked against; ``None`` for those of the system."""
    certificate_file: str | None = None
    """PEM file of the certificate (chain) that this client shows, for mutual TLS; ``None`` for none."""
    key_file: str | None = None
    """PEM file of the private key of :attr:`certificate_file`."""
    verify: bool = True
    """Whether a reader checks the hash of every chunk, and heads where it can."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the one transport in use, by name; unknown ones are refused."""

    def __post_init__(self) -> None:
        if self.chunk_size is not None and not 1 <= self.chunk_size < 4 * MEBIBYTE:
            raise ConfigurationError(field="chunk_size", problem=f"{self.chunk_size} is not within 1 byte and 4 MiB")
        if self.download_window < 0:
            raise ConfigurationError(field="download_window", problem="negative")
        for name in ("connect_timeout", "answer_timeout", "finish_timeout", "keepalive_interval", "keepalive_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(field=name, problem="not a positive number of seconds")
        if not self.reconnect_timeout >= 0:
            raise ConfigurationError(field="reconnect_timeout", problem="not a number of seconds from 0 on")
        if self.token is not None and not (self.token and self.token.isascii() and self.token.isprintable()):
            raise ConfigurationError(field="token", problem="not printable ASCII")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ConfigurationError(field="key_file", problem="a certificate and its key are needed together")


def url_scheme(url: str) -> str:
    """Return the scheme of a server's URL.

    Raises:
        ConfigurationError: ``url`` has no scheme or no host.
    """
    try:
        parts = urlsplit(url)
        complete = bool(parts.scheme and parts.hostname)
    except ValueError:
        complete = False
    if not complete:
        raise ConfigurationError(field="url", problem=f"{url!a} is not SCHEME://HOST[:PORT][/PREFIX]")
    return parts.scheme


def find_transport(scheme: str, *, group: str = CLIENT_TRANSPORTS) -> Callable[..., Any]:
    """Load the transport that an installed package registers for a URL scheme.

    Raises:
        TransportMissing: No installed package does; the error names the one to install where it is known.
    """
    found: EntryPoint | None = next(iter(entry_points(group=group, name=scheme)), None)
    if found is None:
        raise TransportMissing(scheme=scheme, package=_KNOWN_PACKAGES.get(scheme, "a package that provides it"))
    loaded: Callable[..., Any] = found.load()
    return loaded
