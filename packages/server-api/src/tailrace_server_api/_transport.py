"""What carries the protocol to a manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from tailrace_common_api import ConfigurationError
from tailrace_server_api._manager import ResourceManager


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportServerSettings:
    """Settings of one transport of a server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """Port to listen on; 0 picks a free one."""
    public_base: str | None = None
    """URL, path prefix included, under which clients reach this transport; ``None`` for the bound address."""
    chunk_size: int | None = None
    """Bytes of a full chunk on the way to readers that do not say their own; ``None`` for the transport's best."""
    keepalive_interval: float = 20.0
    """Time between signs of life on an idle connection, in seconds."""
    keepalive_timeout: float = 20.0
    """Time after which an unanswered sign of life ends the connection, in seconds."""
    certificate_file: str | None = None
    """PEM file of the certificate (chain) of the server; ``None``: no TLS."""
    key_file: str | None = None
    """PEM file of the private key of :attr:`certificate_file`."""
    client_ca_file: str | None = None
    """PEM file of the certificate authorities of clients: who shows no certificate of theirs is not let in; ``None``:
    clients need none."""
    max_connections: int = 10_000
    """Most connections at the same time; more are refused with ``Overloaded``."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the one transport, by name; unknown ones are refused."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(field="port", problem=f"{self.port} is not within 0 and 65535")
        for name in ("keepalive_interval", "keepalive_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(field=name, problem="not a positive number of seconds")
        if self.max_connections < 1:
            raise ConfigurationError(field="max_connections", problem=f"{self.max_connections} is below 1")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ConfigurationError(field="key_file", problem="a certificate and its key are needed together")
        if self.client_ca_file is not None and self.certificate_file is None:
            raise ConfigurationError(field="client_ca_file", problem="certificates of clients need TLS")


class TransportServer(ABC):
    """A listening transport.

    Belongs to the event loop on which it is started. Used as ``await server.start()`` … ``await server.close(5.0)``.
    """

    @abstractmethod
    async def start(self, manager: ResourceManager, settings: TransportServerSettings) -> None:
        """Listen, and register the public base with the manager; called once.

        Raises:
            ConfigurationError: The address cannot be listened on, or an option is unknown.
        """

    @property
    @abstractmethod
    def urls(self) -> Mapping[str, str]:
        """URLs under which this transport listens, by scheme; port numbers are real ones."""

    @abstractmethod
    async def close(self, grace: float) -> None:
        """Refuse new requests, tell running ones ``GoingAway``, and end what is left after ``grace`` seconds.

        Idempotent. Uploads stay resumable.
        """
