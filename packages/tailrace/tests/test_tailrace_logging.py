"""Log records in a resource: none is in the way of the application, and none is lost while the server is away."""

import json
import logging
import logging.config
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from free_ports import free_port
from tailrace_processes import ENVIRONMENT, Server, needs_server, serving

import tailrace.sync
from tailrace.logging import ResourceHandler
from tailrace_client_upload_api import DropOldest, SpoolToDisk
from tailrace_common_api import ConfigurationError, ResourceState


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., ResourceHandler]]:
    """Make handlers that are closed at the end, and spool below the folder of the test."""
    made: list[ResourceHandler] = []

    def make_handler(url: str, **settings: object) -> ResourceHandler:
        needs_server()
        settings.setdefault("while_away", SpoolToDisk(directory=tmp_path / "spool"))
        handler = ResourceHandler(url, **settings)  # type: ignore[arg-type]  # settings by name
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        made.append(handler)
        return handler

    yield make_handler
    for handler in made:
        handler.close()


def record(message: str, *arguments: object, name: str = "application") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, __file__, 1, message, arguments, None)


def stored(server: Server, reference: str | None) -> tuple[ResourceState, bytes]:
    assert reference is not None
    with tailrace.sync.connect(server.ws) as client, client.open(reference) as resource:
        status = resource.status()
        return status.state, resource.read(0, status.size)


@pytest.mark.parametrize("scheme", ["grpc", "ws"])
def test_records_become_lines_of_a_resource(server: Server, make: Callable[..., ResourceHandler], scheme: str) -> None:
    handler = make(server.urls[scheme])
    assert handler.reference is None
    for number in range(1000):
        handler.handle(record("line %d", number))
    handler.flush()
    reference = handler.reference
    expected = b"".join(b"INFO line %d\n" % number for number in range(1000))
    assert stored(server, reference) == (ResourceState.IN_PROGRESS, expected)
    handler.close()
    assert stored(server, reference) == (ResourceState.COMPLETED, expected)
    handler.close()


def test_many_threads_log_whole_lines(server: Server, make: Callable[..., ResourceHandler]) -> None:
    handler = make(server.ws)

    def log(name: int) -> None:
        for number in range(200):
            handler.handle(record("%d-%d", name, number))

    threads = [threading.Thread(target=log, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.flush()
    _, data = stored(server, handler.reference)
    lines = data.decode().splitlines()
    assert sorted(lines) == sorted(f"INFO {name}-{number}" for name in range(8) for number in range(200))
    for name in range(8):
        mine = [line for line in lines if line.startswith(f"INFO {name}-")]
        assert mine == [f"INFO {name}-{number}" for number in range(200)]


def test_records_wait_for_a_server_that_comes_later(make: Callable[..., ResourceHandler], tmp_path: Path) -> None:
    port = free_port()
    handler = make(f"ws://127.0.0.1:{port}", exit_timeout=30.0)
    for number in range(100):
        handler.handle(record("before %d", number))
    assert handler.reference is None
    with serving(tmp_path, "--http", f"127.0.0.1:{port}") as second:
        handler.flush()
        expected = b"".join(b"INFO before %d\n" % number for number in range(100))
        assert stored(second, handler.reference) == (ResourceState.IN_PROGRESS, expected)
        handler.close()


def test_a_resource_that_is_deleted_is_followed_by_another(
    server: Server, make: Callable[..., ResourceHandler]
) -> None:
    handler = make(server.ws, exit_timeout=30.0)
    handler.handle(record("first"))
    handler.flush()
    first = handler.reference
    assert first is not None
    with tailrace.sync.connect(server.ws) as client:
        client.delete(first)
    handler.handle(record("second"))
    handler.flush()
    assert handler.reference != first
    _, data = stored(server, handler.reference)
    assert data == f"[continues {first}]\n".encode() + b"INFO second\n"


def test_what_cannot_be_logged_is_told_and_raises_nothing(
    server: Server, make: Callable[..., ResourceHandler], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    handler = make(server.ws)
    handler.handle(record("%d", "not a number"))
    assert "not a number" in capsys.readouterr().err
    (tmp_path / "file").write_text("no folder")
    hopeless = make(server.ws, while_away=SpoolToDisk(directory=tmp_path / "file"))
    hopeless.handle(record("lost"))
    assert "Logging error" in capsys.readouterr().err


def test_records_of_the_transports_are_ignored(server: Server, make: Callable[..., ResourceHandler]) -> None:
    handler = make(server.ws)
    for name in ("tailrace", "tailrace_impl_common._client", "grpc._cython", "websockets.client"):
        handler.handle(record("of %s", name, name=name))
    handler.handle(record("mine", name="tailracer"))
    handler.flush()
    assert stored(server, handler.reference)[1] == b"INFO mine\n"


def test_a_full_spool_drops_records_and_says_so(make: Callable[..., ResourceHandler], tmp_path: Path) -> None:
    port = free_port()
    away = SpoolToDisk(directory=tmp_path / "spool", max_bytes=2_000)
    handler = make(f"ws://127.0.0.1:{port}", while_away=away, exit_timeout=30.0)
    for number in range(1_000):
        handler.handle(record("%04d", number))
    with serving(tmp_path, "--http", f"127.0.0.1:{port}") as second:
        handler.flush()
        handler.handle(record("the end"))
        handler.flush()
        _, data = stored(second, handler.reference)
        handler.close()
    lines = data.decode().splitlines()
    kept = [line for line in lines if line.startswith("INFO 0")]
    assert kept == [f"INFO {number:04d}" for number in range(len(kept))]
    assert lines[len(kept) :] == [
        f"[{1000 - len(kept)} log records were dropped here: the spool was full]",
        "INFO the end",
    ]


def test_the_oldest_records_are_dropped_on_demand(make: Callable[..., ResourceHandler], tmp_path: Path) -> None:
    port = free_port()
    handler = make(f"ws://127.0.0.1:{port}", while_away=DropOldest(max_bytes=2_000), exit_timeout=30.0)
    for number in range(1_000):
        handler.handle(record("%04d", number))
    with serving(tmp_path, "--http", f"127.0.0.1:{port}") as second:
        handler.flush()
        _, data = stored(second, handler.reference)
        handler.close()
    marker, *kept = data.decode().splitlines()
    assert "dropped" in marker
    assert kept == [f"INFO {number:04d}" for number in range(1_000 - len(kept), 1_000)]


def test_settings_that_cannot_work_are_refused_at_once() -> None:
    with pytest.raises(ConfigurationError):
        ResourceHandler("no url")
    with pytest.raises(ConfigurationError, match="exit_timeout"):
        ResourceHandler("ws://localhost:1", exit_timeout=-1.0)


_PROGRAM = """
import logging, logging.config, os, sys
logging.config.dictConfig({
    "version": 1,
    "formatters": {"plain": {"format": "%(message)s"}},
    "handlers": {"remote": {"class": "tailrace.logging.ResourceHandler", "formatter": "plain", "url": sys.argv[1]}},
    "root": {"handlers": ["remote"], "level": "INFO"},
})
logging.info("one")
handler = logging.getLogger().handlers[0]
handler.flush()
print(handler.reference, flush=True)
"""


def _run(program: str, url: str, folder: Path) -> list[str]:
    # With its own support for forks gRPC crashes now and then in the child of a process that has calls.
    environment = ENVIRONMENT | {"TMPDIR": str(folder), "GRPC_ENABLE_FORK_SUPPORT": "0"}
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, url],
        capture_output=True,
        text=True,
        timeout=50,
        env=environment,
        check=False,
    )
    # gRPC says by itself that it saw a fork.
    said = [line for line in outcome.stderr.splitlines() if "fork_posix.cc" not in line]
    assert (outcome.returncode, said) == (0, [])
    return outcome.stdout.split()


@pytest.mark.parametrize("scheme", ["grpc", "ws"])
def test_the_exit_of_a_program_completes_the_resource(server: Server, tmp_path: Path, scheme: str) -> None:
    (reference,) = _run(_PROGRAM + 'logging.info("two")\n', server.urls[scheme], tmp_path)
    assert stored(server, reference) == (ResourceState.COMPLETED, b"one\ntwo\n")


_AT_EXIT = """
import atexit, logging, sys
from tailrace.logging import ResourceHandler
handler = ResourceHandler(sys.argv[1], resource=sys.argv[2])
logging.getLogger().addHandler(handler)
# Behind the end of all threads that a program waits for, when no pool of threads takes work any more.
atexit.register(logging.warning, "the last words")
"""


@pytest.mark.parametrize("scheme", ["grpc", "ws"])
def test_what_is_logged_at_the_exit_arrives_also_by_the_name_of_a_host(
    server: Server, tmp_path: Path, scheme: str
) -> None:
    name = f"at-exit-{scheme}"
    url = server.urls[scheme].replace("127.0.0.1", "localhost")
    program = _AT_EXIT.replace("sys.argv[2]", repr(name))
    assert _run(program, url, tmp_path) == []
    with tailrace.sync.connect(server.ws) as client:
        (found,) = [status for status in client.list() if status.metadata.name == name]
    assert stored(server, found.reference) == (ResourceState.COMPLETED, b"the last words\n")


def test_a_program_ends_though_the_server_is_away(tmp_path: Path) -> None:
    needs_server()
    program = _PROGRAM.replace("sys.argv[1]}", 'sys.argv[1], "exit_timeout": 0.2}')
    assert _run(program, "ws://127.0.0.1:9", tmp_path) == ["None"]


_FORK = """
child = os.fork()
logging.info("of the child" if not child else "of the parent")
if not child:
    handler.flush()
    print(handler.reference, flush=True)
    logging.shutdown()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
"""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a fork beside threads is a warning there, and this shows none")
def test_the_child_of_a_fork_has_a_resource_of_its_own(server: Server, tmp_path: Path) -> None:
    mine, childs = _run(_PROGRAM + _FORK, server.ws, tmp_path)
    assert stored(server, mine) == (ResourceState.COMPLETED, b"one\nof the parent\n")
    assert stored(server, childs) == (ResourceState.COMPLETED, b"of the child\n")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a fork beside threads is a warning there, and this shows none")
def test_over_grpc_the_child_of_a_fork_is_silent(server: Server, tmp_path: Path) -> None:
    mine, childs = _run(_PROGRAM + _FORK, server.grpc, tmp_path)
    assert childs == "None"
    assert stored(server, mine) == (ResourceState.COMPLETED, b"one\nof the parent\n")


def test_logging_waits_for_nobody_while_the_server_stands_still(
    make: Callable[..., ResourceHandler], tmp_path: Path
) -> None:
    with serving(tmp_path) as stopped:
        handler = make(stopped.ws, exit_timeout=30.0)
        handler.handle(record("before"))
        handler.flush()
        stopped.process.send_signal(signal.SIGSTOP)
        try:
            for number in range(20_000):
                handler.handle(record("%d %s", number, "x" * 500))
        finally:
            stopped.process.send_signal(signal.SIGCONT)
        handler.flush()
        _, data = stored(stopped, handler.reference)
        handler.close()
    assert data.count(b"\n") == 20_001
    assert json.dumps(data.decode().splitlines()[-1].split()[1]) == '"19999"'
    assert os.listdir(tmp_path / "spool") == []
