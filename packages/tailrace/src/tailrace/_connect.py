"""Connecting to a server: the transport is found by the scheme of its URL."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict, Unpack

from tailrace._malloc import malloc_is_tuned
from tailrace._settings import load_settings
from tailrace_common_api import MEBIBYTE, ClientSettings, ConfigurationError, find_transport, url_scheme

if TYPE_CHECKING:
    from tailrace_impl_common import ConnectedClient

_CLIENT_SCHEMES = {"http": "ws", "https": "wss"}
_TUNED_CHUNK = MEBIBYTE
"""Bytes of a full chunk where memory of that size is used again. Else it costs more than fewer messages save, over
gRPC, whose core allocates each message."""
_BETWEEN_URLS = re.compile(r"[,\s]+(?=[A-Za-z][A-Za-z0-9+.-]*://)")


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
    reconnect_timeout: float | None
    token: str | None
    ca_file: str | None
    certificate_file: str | None
    key_file: str | None
    verify: bool | None
    options: Mapping[str, str] | None


def client_url(url: str) -> str:
    """Return the URL that a client connects to: ``http`` and ``https`` stand for the WebSocket transport there.

    Raises:
        ConfigurationError: ``url`` has no scheme or no host.
    """
    scheme = url_scheme(url)
    return f"{_CLIENT_SCHEMES.get(scheme, scheme)}{url[len(scheme) :]}"


def client_urls(urls: str | Sequence[str]) -> list[str]:
    """Return the URLs that a client connects to, each once.

    Args:
        urls: One URL or several; in a text they are separated by commas or white space.

    Raises:
        ConfigurationError: One has no scheme or no host, or there is none.
    """
    texts = [urls] if isinstance(urls, str) else list(urls)
    named = [url for text in texts for url in _BETWEEN_URLS.split(text.strip())]
    if not named:
        raise ConfigurationError(field="url", problem="no server is named")
    for url in named:
        if any(map(str.isspace, url)):
            raise ConfigurationError(field="url", problem=f"{url!a} is not URLs with white space between them")
    return list(dict.fromkeys(map(client_url, named)))


def prepare_client(
    url: str | Sequence[str] | None, arguments: ClientArguments, config: str | os.PathLike[str] | None = None
) -> Callable[[], ConnectedClient]:
    """Read settings and find the transport; return what makes the client, to be called on its event loop.

    Blocking: reads a file and imports the transport.

    Raises:
        ConfigurationError: No URL is given or set, or a setting cannot work.
        TransportMissing: No installed package serves the scheme of the URL.
    """
    settings = load_settings({"client": arguments}, config=config)
    named = url or settings.server
    if not named:
        raise ConfigurationError(field="url", problem="no server is named; give a URL or set TAILRACE_SERVER")
    transports = [(find_transport(url_scheme(address)), address) for address in client_urls(named)]
    client = settings.client
    if client.chunk_size is None and malloc_is_tuned():
        client = replace(client, chunk_size=_TUNED_CHUNK)

    def make() -> ConnectedClient:
        clients: list[ConnectedClient] = [transport(address, client) for transport, address in transports]
        return clients[0] if len(clients) == 1 else _joined(clients, client)

    return make


def _joined(clients: Sequence[ConnectedClient], settings: ClientSettings) -> ConnectedClient:
    """Return a client over the connections of several, of which none has been used."""
    from tailrace_impl_common import ConnectedClient, FailoverConnection

    return ConnectedClient(FailoverConnection([client.connection for client in clients]), settings)


@asynccontextmanager
async def connect(
    url: str | Sequence[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    **settings: Unpack[ClientArguments],
) -> AsyncGenerator[ConnectedClient, None]:
    """Connect to a server: ``async with tailrace.connect("grpc://localhost:7070") as client:``.

    The connection is made when the client is first used, and ends with the block. When it is lost the client comes back
    by itself, for as long as ``reconnect_timeout`` says. Of several URLs it uses one, and turns to the next when that
    fails: whatever runs is continued there.

    Args:
        url: ``SCHEME://HOST[:PORT][/PREFIX]``, with the scheme of an installed transport; several of them, as a list or
            in one text, separated by commas or white space, that lead to the same resources; ``None`` for what
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
