from __future__ import annotations

import pytest

from tailrace_common_api import ClientSettings, ConfigurationError
from tailrace_impl_websocket import (
    FrameProtocols,
    WebSocketClientOptions,
    WebSocketConnection,
    WebSocketServerOptions,
)


def test_defaults() -> None:
    assert WebSocketClientOptions.parse({}) == WebSocketClientOptions(compression=False)
    assert WebSocketServerOptions.parse({}) == WebSocketServerOptions(compression=False, prefix=None)


def test_values_are_read() -> None:
    assert WebSocketClientOptions.parse({"compression": "TRUE"}) == WebSocketClientOptions(compression=True)
    assert WebSocketServerOptions.parse({"compression": "on", "prefix": "/a/b/"}) == WebSocketServerOptions(
        compression=True, prefix="/a/b"
    )
    assert WebSocketServerOptions.parse({}).protocol is FrameProtocols.BUFFERED
    assert WebSocketServerOptions.parse({"protocol": "WebSockets-SansIO"}).protocol is FrameProtocols.SANSIO
    assert WebSocketServerOptions.parse({"prefix": "/"}).prefix == ""


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"compresion": "on"}, "compresion"),
        ({"compression": "perhaps"}, "compression"),
        ({"protocol": "wsproto"}, "'wsproto' is not buffered or websockets-sansio"),
        ({"prefix": "tailrace"}, "prefix"),
        ({"prefix": "/ü"}, "prefix"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        WebSocketServerOptions.parse(options)


def test_client_refuses_an_option_of_the_server() -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        WebSocketConnection("ws://localhost", ClientSettings(options={"prefix": "/a"}))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "ws://",
        "ws:///path",
        "ws://localhost:0",
        "ws://localhost:99999",
        "ws://localhost:x",
        "ws://user@localhost",
        "ws://localhost?x=1",
        "ws://localhost#x",
        "localhost:7080",
    ],
)
def test_urls_that_name_no_server_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        WebSocketConnection(url, ClientSettings())


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("ws://localhost", "ws://localhost/v1/connect"),
        ("ws://localhost:7080/", "ws://localhost:7080/v1/connect"),
        ("wss://example.org/a/b", "wss://example.org/a/b/v1/connect"),
        ("ws://[::1]:80", "ws://[::1]:80/v1/connect"),
    ],
)
def test_path_of_a_url_is_kept_as_prefix(url: str, endpoint: str) -> None:
    assert WebSocketConnection(url, ClientSettings()).address == endpoint
