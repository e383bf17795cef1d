"""The transport is chosen by URL, environment or file; code does not change."""

from pathlib import Path

import pytest
from tailrace_processes import Server, needs_server

import tailrace
from tailrace._connect import client_url, client_urls
from tailrace_common_api import MEBIBYTE, ConfigurationError, ResourceState, TransportMissing

NOBODY = "grpc://127.0.0.1:9"
"""A URL at which nobody listens."""


@pytest.mark.parametrize("scheme", ["grpc", "ws", "http"])
async def test_a_client_is_connected_by_the_scheme_of_its_url(server: Server, scheme: str) -> None:
    async with tailrace.connect(server.urls[scheme], connect_timeout=20.0) as client:
        async with client.upload("build.log", content_type="text/plain", lines=True) as upload:
            await upload.write(b"compiling\n")
        assert upload.status.state is ResourceState.COMPLETED
        async with client.open(upload.reference) as resource:
            assert [chunk async for chunk in resource.follow()] == [b"compiling\n"]
            assert await resource.read_lines(last=100) == [b"compiling\n"]


async def test_the_environment_names_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAILRACE_SERVER", server.ws)
    async with tailrace.connect() as client, client.upload("a") as upload:
        assert upload.reference.startswith(server.ws)


def test_the_file_names_the_server(server: Server, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f'server = "{server.grpc}"\n')
    with tailrace.sync.connect(config=tmp_path / "own.toml") as blocking, blocking.upload("a") as session:
        assert session.reference.startswith(server.grpc)


async def test_several_urls_are_ways_to_one_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAILRACE_SERVER", f"{NOBODY}, {server.ws}")
    for urls in ([NOBODY, server.ws], f"{NOBODY} {server.ws}", None):
        async with tailrace.connect(urls) as client, client.upload("a") as upload:
            assert upload.reference.startswith(server.ws)
    # The first answer is one of a stream: it, too, is asked for on the other way.
    async with tailrace.connect([NOBODY, server.ws]) as client:
        assert (await client.open(upload.reference).wait()).state is ResourceState.COMPLETED


def test_the_file_names_several_urls(server: Server, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f'server = ["{NOBODY}", "{server.ws}"]\n')
    with tailrace.sync.connect(config=tmp_path / "own.toml") as blocking, blocking.upload("a") as session:
        assert session.reference.startswith(server.ws)
    with tailrace.sync.connect([NOBODY, server.ws]) as blocking, blocking.upload("a") as session:
        assert session.reference.startswith(server.ws)


async def test_without_a_server_there_is_no_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAILRACE_SERVER", raising=False)
    with pytest.raises(ConfigurationError, match="TAILRACE_SERVER"):
        async with tailrace.connect():
            pass


async def test_a_missing_transport_is_named() -> None:
    with pytest.raises(TransportMissing, match="carrier-pigeon"):
        async with tailrace.connect("carrier-pigeon://coop"):
            pass


def test_a_missing_transport_is_named_to_blocking_code_too() -> None:
    with pytest.raises(TransportMissing) as caught:
        tailrace.sync.connect("carrier-pigeon://coop")
    assert caught.value.scheme == "carrier-pigeon"


async def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="connect_timeout"):
        async with tailrace.connect("grpc://127.0.0.1:1", connect_timeout=0):
            pass
    with pytest.raises(ConfigurationError, match="SCHEME"):
        async with tailrace.connect("127.0.0.1:1"):
            pass


def test_several_urls_in_one_text() -> None:
    assert client_urls("grpc://a, ws://b:1/p,q\n http://b:1/p,q") == ["grpc://a", "ws://b:1/p,q"]
    assert client_urls(["grpc://a", "grpcs://b wss://c"]) == ["grpc://a", "grpcs://b", "wss://c"]
    for urls in ([], "", "grpc://a, b", ["grpc://a", ""]):
        with pytest.raises(ConfigurationError):
            client_urls(urls)


def test_http_stands_for_websocket() -> None:
    assert client_url("http://h:1/p") == "ws://h:1/p"
    assert client_url("HTTPS://h") == "wss://h"
    assert client_url("grpc://h") == "grpc://h"


@pytest.mark.parametrize(
    ("tuned", "set_to", "expected"), [(True, None, MEBIBYTE), (False, None, None), (True, 70_000, 70_000)]
)
async def test_chunks_are_large_where_memory_suits_them(
    monkeypatch: pytest.MonkeyPatch, tuned: bool, set_to: int | None, expected: int | None
) -> None:
    needs_server()
    monkeypatch.setattr("tailrace._connect.malloc_is_tuned", lambda: tuned)
    async with tailrace.connect(NOBODY, chunk_size=set_to) as client:
        assert client._link.settings.chunk_size == expected
