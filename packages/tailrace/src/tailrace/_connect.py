"""Connecting to a server: the transport is found by the scheme of its URL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypedDict, Unpack

from tailrace._settings import load_settings
from tailrace_common_api import ConfigurationError, find_transport, url_scheme

if TYPE_CHECKING:
    from tailrace_impl_common import ConnectedClient

_CLIENT_SCHEMES = {"http": "ws", "https": "wss"}


class ClientArguments(TypedDict, total=False):
    """Settings of a client as arguments; see :class:`tailrace_common_api.ClientSettings`.

    What is missing or ``None`` comes from the environment, the settings file, or the default, in this order.
    """

    chunk_size: int | None
    download_window: int | None
    connect_timeout: float | None
    answer_timeout: float | None
    finish_timeout: float | None
    keepalive_interval: float | None
    keepalive_timeout: float | None
    verify: bool | None
    options: Mapping[str, str] | None


def client_url(url: str) -> str:
    """Return the URL that a client connects to: ``http`` and ``https`` stand for the WebSocket transport there.

    Raises:
        ConfigurationError: ``url`` has no scheme or no host.
    """
    scheme = url_scheme(url)
    return f"{_CLIENT_SCHEMES.get(scheme, scheme)}{url[len(scheme) :]}"


def prepare_client(
    url: str | None, arguments: ClientArguments, config: str | os.PathLike[str] | None = None
) -> Callable[[], ConnectedClient]:
    """Read settings and find the transport; return what makes the client, to be called on its event loop.

    Blocking: reads a file and imports the transport.

    Raises:
        ConfigurationError: No URL is given or set, or a setting cannot work.
        TransportMissing: No installed package serves the scheme of the URL.
    """
    settings = load_settings({"client": arguments}, config=config)
    address = url or settings.server
    if address is None:
        raise ConfigurationError(field="url", problem="no server is named; give a URL or set TAILRACE_SERVER")
    address = client_url(address)
    transport = find_transport(url_scheme(address))

    def make() -> ConnectedClient:
        client: ConnectedClient = transport(address, settings.client)
        return client

    return make


@asynccontextmanager
async def connect(
    url: str | None = None, *, config: str | os.PathLike[str] | None = None, **settings: Unpack[ClientArguments]
) -> AsyncGenerator[ConnectedClient, None]:
    """Connect to a server: ``async with tailrace.connect("grpc://localhost:7070") as client:``.

    The connection is made when the client is first used, and ends with the block.

    Args:
        url: ``SCHEME://HOST[:PORT][/PREFIX]``, with the scheme of an installed transport; ``None`` for the server that
            ``TAILRACE_SERVER`` or the settings file names.
        config: Settings file; ``None`` for the one that ``TAILRACE_CONFIG`` names, or ``./tailrace.toml`` if there is
            one.
        settings: Settings of the client; see :class:`ClientArguments`.

    Raises:
        ConfigurationError: No URL is given or set, or a setting cannot work.
        TransportMissing: No installed package serves the scheme of the URL; the error names the one to install.
    """
    make = await asyncio.to_thread(prepare_client, url, settings, config)
    async with make() as client:
        yield client
