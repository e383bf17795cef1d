"""Whom a URL of this transport names."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from tailrace_common_api import ConfigurationError, url_scheme

DEFAULT_PORT = 7070
"""Port of a URL that names none."""

_SCHEMES = ("grpc", "grpcs")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is."""

    secure: bool
    """Whether it is reached over TLS."""
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(url: str) -> Address:
    """Return whom ``grpc://HOST[:PORT]``, or ``grpcs://`` for TLS, names.

    Raises:
        ConfigurationError: It is no such URL.
    """
    scheme = url_scheme(url)
    if scheme not in _SCHEMES:
        raise ConfigurationError(field="url", problem=f"{url!a} is not grpc://HOST[:PORT] or grpcs://HOST[:PORT]")
    parts = urlsplit(url)
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise ConfigurationError(field="url", problem=f"{url!a} has no valid port") from None
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ConfigurationError(field="url", problem=f"{url!a} has more than host and port, which gRPC cannot use")
    assert parts.hostname is not None
    return Address(scheme == "grpcs", parts.hostname, port)
