"""A server with both transports in one process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from tailrace._record_settings import RecordTables
from tailrace._settings import Settings, TransportSettings
from tailrace_common_api import (
    SERVER_TRANSPORTS,
    SERVERS,
    ConfigurationError,
    find_transport,
)
from tailrace_impl_common import is_loopback
from tailrace_server_api import Damage, ResourceManager, TransportServer, TransportServerSettings

_logger = logging.getLogger(__name__)

# Name of the transport by the name of its setting.
_TRANSPORTS = {"grpc": "grpc", "http": "ws"}


class ManagedServer(Protocol):
    """What the entry point of a server returns when it is called with a folder and options."""

    @property
    def manager(self) -> ResourceManager: ...

    async def start(self) -> None: ...

    def drain(self) -> None: ...

    async def close(self) -> None: ...

    def verify(self, ids: Iterable[str], *, repair: bool) -> AsyncGenerator[tuple[str, Damage | None], None]: ...


class CreateServer(Protocol):
    """The entry point of a server."""

    def __call__(
        self, data: Path, options: Mapping[str, object], *, records: Mapping[str, object] | None = None
    ) -> ManagedServer: ...


@asynccontextmanager
async def serve_resources(settings: Settings, *, grace: float) -> AsyncGenerator[Mapping[str, str], None]:
    """Serve a folder over every transport while the block runs, and yield the URLs by scheme.

    When the block is left, running requests are told that the server is going away and have ``grace`` seconds to end;
    uploads stay resumable.

    Raises:
        ConfigurationError: A setting cannot work, an address cannot be listened on, the folder is in use, or a package
            is missing.
    """
    create, transports = await asyncio.to_thread(_load, settings)
    with _naming("storage", settings.records, data="serve.data"):
        # Files of schemas are read, and drivers of databases are imported.
        server = await asyncio.to_thread(create, settings.serve.data, settings.storage, records=settings.records.tables)
    async with AsyncExitStack() as stack:
        # Closed even when starting fails half-way; closing is harmless then.
        stack.push_async_callback(server.close)
        with _naming("storage", settings.records, data="serve.data"):
            await server.start()
        urls: dict[str, str] = {}
        closing = [transport for _, transport, _ in transports]
        stack.push_async_callback(_close_all, closing, grace)
        for setting, transport, transport_settings in transports:
            with _naming(setting, host=f"serve.{setting}", port=f"serve.{setting}"):
                await transport.start(server.manager, transport_settings)
            urls.update(transport.urls)
        # The first thing to happen at the end: who looks whether the server is ready sends no more to it.
        stack.callback(server.drain)
        _logger.info("serving %s on %s", ascii(str(settings.serve.data)), ", ".join(urls.values()))
        yield urls
        _logger.info("stopping")


async def verify_resources(
    settings: Settings, ids: Iterable[str], *, repair: bool
) -> AsyncGenerator[tuple[str, Damage | None], None]:
    """Verify what is stored in the folder of a server that does not run; see ``ManagedServer.verify``.

    Raises:
        ConfigurationError: The folder is not there or in use, or a setting cannot work.
        NotFound: There is no resource under one of the ids.
        StorageFailure: The folder cannot be read.
    """
    create = await asyncio.to_thread(_load_server)
    with _naming("storage", data="serve.data"):
        # Nothing of it is to be made by looking at it.
        if not await asyncio.to_thread(settings.serve.data.is_dir):
            raise ConfigurationError(field="data", problem=f"{settings.serve.data} is no folder")
        # Without the ends of record streams: their databases are none of what is verified.
        server = create(settings.serve.data, settings.storage)
        async with aclosing(server.verify(ids, repair=repair)) as found:
            async for resource, damage in found:
                yield resource, damage


@contextmanager
def _naming(table: str, records: RecordTables | None = None, /, **elsewhere: str) -> Generator[None, None, None]:
    """Let errors name settings as the user does: by table and key, and by place for what is declared in ``records``."""
    try:
        yield
    except ConfigurationError as error:
        place = records.place_of(error.field) if records is not None else None
        if place is not None:
            raise ConfigurationError(field=error.field, problem=f"{error.problem} (set in {place})") from None
        name = elsewhere.get(error.field, f"{table}.{error.field}")
        raise ConfigurationError(field=name, problem=error.problem) from None


async def _close_all(transports: list[TransportServer], grace: float) -> None:
    await asyncio.gather(*(transport.close(grace) for transport in transports))


def _load(
    settings: Settings,
) -> tuple[CreateServer, list[tuple[str, TransportServer, TransportServerSettings]]]:
    """Import server and transports; blocking."""
    create = _load_server()
    transports = []
    for setting, name in _TRANSPORTS.items():
        address = f"serve.{setting}"
        with _naming(setting, host=address, port=address, **{address: address}):
            transport_settings = _transport_settings(
                address, getattr(settings.serve, setting), getattr(settings, setting)
            )
        _check_exposure(address, transport_settings, settings)
        transport = find_transport(name, group=SERVER_TRANSPORTS)()
        assert isinstance(transport, TransportServer)
        transports.append((setting, transport, transport_settings))
    return create, transports


def _load_server() -> CreateServer:
    found = next(iter(entry_points(group=SERVERS, name="default")), None)
    if found is None:
        raise ConfigurationError(field="server", problem="no server is installed; install tailrace-impl-server")
    create: CreateServer = found.load()
    return create


def _transport_settings(name: str, address: str, settings: TransportSettings) -> TransportServerSettings:
    host, port = parse_address(name, address)
    return TransportServerSettings(
        host=host,
        port=port,
        public_base=settings.public_base,
        chunk_size=settings.chunk_size,
        keepalive_interval=settings.keepalive_interval,
        keepalive_timeout=settings.keepalive_timeout,
        certificate_file=settings.certificate_file,
        key_file=settings.key_file,
        client_ca_file=settings.client_ca_file,
        max_connections=settings.max_connections,
        options=settings.options,
    )


def _check_exposure(name: str, transport: TransportServerSettings, settings: Settings) -> None:
    """Refuse to let the network in without access control and TLS, unless that is what was asked for.

    Raises:
        ConfigurationError: Something is missing.
    """
    if is_loopback(transport.host):
        return
    _, _, table = name.partition(".")
    missing = []
    if not (settings.storage.get("tokens") or settings.storage.get("authenticator") or transport.client_ca_file):
        missing.append("access control (`tailrace token add`, and --tokens FILE)")
    if transport.certificate_file is None:
        missing.append(f"TLS (certificate_file and key_file in [{table}])")
    if not missing:
        return
    if settings.serve.insecure:
        _logger.warning("%s listens for the network without %s", name, " and without ".join(missing))
        return
    problem = f"{transport.host!a} is no loopback address: it needs {' and '.join(missing)}; or say --insecure"
    raise ConfigurationError(field=name, problem=problem)


def parse_address(name: str, text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``.

    Raises:
        ConfigurationError: It is neither.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or parts.netloc != text or "@" in text:
        raise ConfigurationError(field=name, problem=f"{text!a} is not HOST:PORT with a port of 0 to 65535")
    return host, port
