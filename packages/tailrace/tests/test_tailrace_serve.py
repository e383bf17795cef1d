"""`tailrace serve`: when it is ready, what it refuses, and how it ends."""

import asyncio
import json
import logging
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from tailrace_processes import Run, Start, needs_server, serving

from tailrace._logging import configure_logging
from tailrace._serving import parse_address, serve_resources
from tailrace._settings import load_settings
from tailrace_common_api import ConfigurationError, Overloaded

ANY = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]


def test_ready_is_one_line_of_json(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert set(server.urls) == {"grpc", "ws", "http"}
        for scheme, url in server.urls.items():
            assert url.startswith(f"{scheme}://127.0.0.1:")
        assert server.ws.rpartition(":")[2] == server.http.rpartition(":")[2]
        assert (tmp_path / "data").is_dir()


def test_ready_is_a_line_for_each_transport_for_people(start: Start) -> None:
    needs_server()
    process = start("serve", *ANY)
    assert process.stdout is not None
    lines = [process.stdout.readline().decode() for _ in range(2)]
    assert "grpc://127.0.0.1:" in lines[0]
    assert "ws://127.0.0.1:" in lines[1]
    assert "http://127.0.0.1:" in lines[1]
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    assert process.stdout.read() == b""


@pytest.mark.parametrize(
    ("configuration", "imported"),
    [("", set()), ("[queues.jobs]\n", {"tailrace_impl_server._record_declarations"})],
)
def test_a_server_starts_without_what_only_some_need(
    tmp_path: Path, start: Start, configuration: str, imported: set[str]
) -> None:
    needs_server()
    (tmp_path / "tailrace.toml").write_text(configuration)
    process = start("serve", "--config", str(tmp_path / "tailrace.toml"), *ANY, PYTHONPROFILEIMPORTTIME="1")
    assert process.stdout is not None
    assert b"grpc://" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    modules = {line.rpartition("|")[2].strip() for line in errors.decode().splitlines() if "import time:" in line}
    # A module that is imported by its name in a text is not in the list, those that it imports are.
    assert {"grpc.aio", "uvicorn", "tailrace_impl_server._manager"} <= modules
    # Each takes from a few milliseconds to a tenth of a second, in which followers wait for a server that comes back.
    for_some = {"numpy", "opentelemetry", "jsonschema_rs", "asyncpg", "google.protobuf.json_format", "rich", "httpx"}
    for_some.add("tailrace_impl_server._record_declarations")
    assert for_some & modules == imported


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_server_tells_its_clients_and_keeps_what_was_announced(
    tmp_path: Path, start: Start, run: Run, number: signal.Signals
) -> None:
    with serving(tmp_path, TAILRACE_SERVE_GRACE="5") as server:
        # Without that they would wait for it to come back.
        once = {"TAILRACE_CLIENT_RECONNECT_TIMEOUT": "0"}
        uploader = start("upload", "-", "--server", server.grpc, "--json", **once)
        assert uploader.stdout is not None
        assert uploader.stdin is not None
        reference = json.loads(uploader.stdout.readline())["reference"]
        follower = start("follow", reference, "--server", server.ws, **once)
        assert follower.stdout is not None
        uploader.stdin.write(b"kept\n")
        assert follower.stdout.readline() == b"kept\n"
        server.process.send_signal(number)
        assert server.process.wait() == 0
        assert json.loads(uploader.stdout.readline())["error"]["code"] == "going_away"
        assert uploader.wait() == 1
        assert follower.wait() == 1
    with serving(tmp_path) as server:
        (status,) = run("status", reference, "--server", server.ws, "--json").json()
        assert (status["state"], status["size"]) == ("IN_PROGRESS", 5)


def test_a_folder_has_one_server(tmp_path: Path, run: Run) -> None:
    with serving(tmp_path):
        outcome = run("serve", "--data", str(tmp_path / "data"), *ANY)
        assert outcome.code == 2
        assert outcome.output == b""


@pytest.mark.parametrize("option", ["--grpc", "--http"])
def test_an_address_in_use_is_refused(run: Run, option: str) -> None:
    needs_server()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        outcome = run("serve", *ANY, option, address)
    assert outcome.code == 2
    assert outcome.output == b""
    # In one line, whatever the library below has to say.
    (line,) = outcome.errors.splitlines()
    assert line.startswith(f"tailrace: serve.{option.removeprefix('--')}: cannot listen on {address}: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[storage]\nduarbility = 1", "storage.duarbility: unknown; known are durability, "),
        ("[storage]\nupload_grace = 'long'", "storage.upload_grace: 'long' is not a number"),
        ("[http]\npublic_base = 'example.org'", "http.public_base: 'example.org' is not ws://"),
        ("[grpc]\npublic_base = 'example.org'", "grpc.public_base: 'example.org' is not grpc://"),
        ("[http]\nmax_connections = 0", "http.max_connections: 0 is below 1"),
        ("[grpc]\nmax_connections = 'many'", "grpc.max_connections: 'many' is not a whole number"),
        ("[http.options]\ncolour = true", "http.options: unknown option 'colour'"),
        ("[grpc.options]\ncolour = true", "grpc.options: unknown option 'colour'"),
        ("[serve]\ndata = 'tailrace.toml'", "serve.data: tailrace.toml is no folder"),
        ("[queues.tasks]\nlease = 'long'", "queues.tasks.lease: 'long' is no number of seconds"),
        ("[queues.tasks]\nleese = 5", "queues.tasks.leese: unknown; known are database, lease, max_attempts"),
        ("[collections.a]\ndatabase = 'shop'", "collections.a.database: no database 'shop'; none is declared"),
        ("[collections.a]\nschema = 'absent.json'", "collections.a.schema: 'absent.json': No such file or directory"),
        ("[databases.shop]\nurl = 'mysql://u:p@h/d'", "databases.shop.url: neither sqlite:PATH nor postgresql://"),
    ],
)
def test_a_mistake_in_the_settings_is_named_in_one_line(run: Run, tmp_path: Path, text: str, problem: str) -> None:
    needs_server()
    (tmp_path / "tailrace.toml").write_text(text)
    outcome = run("serve", *ANY)
    assert (outcome.code, outcome.output) == (2, b"")
    (line,) = outcome.errors.splitlines()
    assert line.startswith(f"tailrace: {problem}")


def test_a_database_that_cannot_be_reached_is_named_without_its_password(run: Run, tmp_path: Path) -> None:
    needs_server()
    pytest.importorskip("asyncpg")
    (tmp_path / "tailrace.toml").write_text("[queues.tasks]\ndatabase = 'shop'\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()[1]
    outcome = run("serve", *ANY, TAILRACE_DATABASES_SHOP_URL=f"postgresql://u:secret@127.0.0.1:{nobody}/d")
    (line,) = outcome.errors.splitlines()
    problem = "databases.shop.url: the database cannot be reached: Connection refused"
    assert line == f"tailrace: {problem} (set in TAILRACE_DATABASES_SHOP_URL)"
    # As for everything that is to be mended in the settings.
    assert (outcome.code, outcome.output) == (2, b"")


def test_where_a_database_is_wrong_is_told_without_its_url(run: Run, tmp_path: Path) -> None:
    needs_server()
    (tmp_path / "tailrace.toml").write_text("[databases.shop]\nmax_connections = 0\nurl = 'sqlite:a'\n")
    outcome = run("serve", *ANY)
    assert outcome.code == 2
    assert outcome.errors.startswith("tailrace: databases.shop.max_connections: 0 is no number within 1 and 1000")
    assert outcome.errors.endswith("(set in tailrace.toml)\n")
    (tmp_path / "tailrace.toml").write_text("[databases.shop]\nmax_connections = 1\n")
    outcome = run("serve", *ANY, TAILRACE_DATABASES_SHOP_URL="mysql://u:secret@h/d")
    assert outcome.code == 2
    assert outcome.errors.startswith("tailrace: databases.shop.url: ")
    assert outcome.errors.endswith("(set in TAILRACE_DATABASES_SHOP_URL)\n")
    assert "secret" not in outcome.errors


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1", "not HOST:PORT"),
        ("127.0.0.1:x", "not HOST:PORT"),
        ("127.0.0.1:65536", "not HOST:PORT"),
        (":1", "not HOST:PORT"),
        ("127.0.0.1:1/x", "not HOST:PORT"),
        ("", "not HOST:PORT"),
    ],
)
def test_bad_addresses_are_refused(address: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        parse_address("serve.grpc", address)


def test_addresses_are_read() -> None:
    assert parse_address("x", "127.0.0.1:7070") == ("127.0.0.1", 7070)
    assert parse_address("x", "[::1]:0") == ("::1", 0)
    assert parse_address("x", "localhost:1") == ("localhost", 1)


def test_settings_come_from_the_file(tmp_path: Path, run: Run) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('[storage]\nupload_grace = 7.5\n[http]\npublic_base = "ws://public.example/files"\n')
    with serving(tmp_path, "--config", str(config)) as server:
        outcome = run("upload", "-", "--server", server.grpc, stdin=b"x")
        reference = outcome.output.decode().strip()
        (status,) = run("status", reference, "--json").json()
        alternatives = status["alternatives"]
        assert isinstance(alternatives, list)
        assert f"ws://public.example/files/r/{status['id']}" in alternatives
    config.write_text("[storage]\nunheard_of = 1\n")
    outcome = run("serve", *ANY, "--config", str(config))
    assert outcome.code == 2
    assert "unheard_of" in outcome.errors


def test_descriptor_limit_is_raised_and_the_server_works_under_a_low_one(tmp_path: Path, run: Run) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(soft, 256)
    if lower == hard:
        pytest.skip("the limit cannot be raised here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
    try:
        with serving(tmp_path) as server:
            limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert line.split()[3] == line.split()[4]


async def test_a_server_runs_inside_an_application(tmp_path: Path) -> None:
    needs_server()
    import tailrace

    arguments = {"serve": {"data": tmp_path / "data", "grpc": "127.0.0.1:0", "http": "127.0.0.1:0"}}
    settings = await asyncio.to_thread(load_settings, arguments, environment={})
    async with serve_resources(settings, grace=1.0) as urls, tailrace.connect(urls["grpc"]) as client:
        async with client.upload("a.log", lines=True) as upload:
            await upload.write(b"one\ntwo\n")
        async with tailrace.connect(urls["http"]) as other, other.open(upload.reference) as resource:
            assert await resource.read_lines() == [b"one\n", b"two\n"]


@pytest.mark.parametrize("scheme", ["grpc", "ws"])
async def test_the_most_connections_are_those_of_the_settings(tmp_path: Path, scheme: str) -> None:
    needs_server()
    import tailrace

    arguments = {
        "serve": {"data": tmp_path / "data", "grpc": "127.0.0.1:0", "http": "127.0.0.1:0"},
        "grpc": {"max_connections": 1},
        "http": {"max_connections": 1},
    }
    settings = await asyncio.to_thread(load_settings, arguments, environment={})
    async with serve_resources(settings, grace=1.0) as urls:
        async with tailrace.connect(urls[scheme], reconnect_timeout=0.0) as first, first.upload("a") as upload:
            # It has the only connection, and a call on it.
            async with tailrace.connect(urls[scheme], reconnect_timeout=0.0) as second:
                with pytest.raises(Overloaded):
                    await second.status(upload.id)
            await upload.write(b"x")
        assert upload.status.size == 1


def test_log_lines_name_the_resource_and_stay_lines(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before: list[Any] = [root.level, root.handlers[:]]
    try:
        configure_logging("info")
        logger = logging.getLogger("tailrace_test")
        logger.info("stored %s", "x\ny\x1b[31m", extra={"resource": "abc"})
        logger.debug("not shown")
        logger.warning("plain")
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
    first, second = capfd.readouterr().err.splitlines()
    assert first.endswith("INFO    tailrace_test [abc]: stored x\\ny\\x1b[31m")
    assert second.endswith("WARNING tailrace_test: plain")
