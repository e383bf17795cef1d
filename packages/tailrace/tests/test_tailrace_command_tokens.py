"""Tokens on the command line, a server that asks for them, and addresses that it may listen on."""

import json
from pathlib import Path

import pytest
from tailrace_processes import Run, Start, needs_server


@pytest.fixture(autouse=True)
def server_installed() -> None:
    needs_server()


def test_a_token_is_printed_once_listed_without_it_and_revoked(run: Run, tmp_path: Path) -> None:
    made = run("token", "add", "ci", "--scope", "upload", "--scope", "read", "--expires", "30d")
    assert made.code == 0
    (token,) = made.output.decode().splitlines()
    assert token not in (tmp_path / "tokens.json").read_text()
    listed = run("token", "list", "--json")
    assert token not in listed.output.decode()
    (entry,) = listed.json()
    assert (entry["name"], entry["scopes"], entry["context"]) == ("ci", ["read", "upload"], None)
    assert entry["expires_at"] == entry["created_at"] + 30 * 86_400  # type: ignore[operator]  # numbers
    assert run("token", "add", "ci", "--scope", "read").code == 2
    assert run("token", "revoke", "ci").code == 0
    assert run("token", "revoke", "ci").code == 2
    assert run("token", "list").output == b""


@pytest.mark.parametrize(
    "arguments",
    [["x\ny", "--scope", "read"], ["ci", "--scope", "all"], ["ci"], ["ci", "--scope", "read", "--expires", "soon"]],
)
def test_what_is_no_token_is_refused(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    refused = run("token", "add", *arguments)
    assert (refused.code, refused.output) == (2, b"")
    assert not (tmp_path / "tokens.json").exists()


def test_a_server_lets_in_who_has_a_token(run: Run, start: Start, tmp_path: Path) -> None:
    token = run("token", "add", "ci", "--scope", "upload", "--scope", "read").output.decode().strip()
    (tmp_path / "a.txt").write_bytes(b"one\n")
    addresses = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    server = start("serve", "--json", "--tokens", "tokens.json", *addresses)
    assert server.stdout is not None
    ready = json.loads(server.stdout.readline())
    for scheme in ("grpc", "ws"):
        stranger = run("upload", "a.txt", "--server", ready[scheme])
        assert stranger.code == 5
        assert "a valid bearer token is needed" in stranger.errors
        assert run("upload", "a.txt", "--server", ready[scheme], TAILRACE_CLIENT_TOKEN=token).code == 0
        denied = run("list", "--server", ready[scheme], TAILRACE_CLIENT_TOKEN=token)
        assert denied.code == 5
        assert token not in denied.errors


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:1", "example.com:1"])
@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_the_network_is_not_let_in_by_mistake(run: Run, address: str, transport: str) -> None:
    addresses = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", transport: address}
    refused = run("serve", "--grpc", addresses["grpc"], "--http", addresses["http"])
    assert (refused.code, refused.output) == (2, b"")
    (line,) = refused.errors.splitlines()
    assert line.startswith(f"tailrace: serve.{transport}: ")
    assert "tailrace token add" in line
    assert f"certificate_file and key_file in [{transport}]" in line
    assert "--insecure" in line


def test_tokens_without_tls_are_not_enough(run: Run) -> None:
    assert run("token", "add", "ci", "--scope", "read").code == 0
    refused = run("serve", "--tokens", "tokens.json", "--grpc", "0.0.0.0:0", "--http", "127.0.0.1:0")
    assert refused.code == 2
    assert "TLS" in refused.errors
    assert "tailrace token add" not in refused.errors


def test_the_network_is_let_in_on_purpose(start: Start) -> None:
    server = start("serve", "--json", "--insecure", "--grpc", "0.0.0.0:0", "--http", "127.0.0.1:0")
    assert server.stdout is not None
    assert json.loads(server.stdout.readline())["event"] == "ready"
