"""What the command line does without a server: usage, heads, exit codes, start-up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tailrace._command import _COMMANDS, run, tailrace
from tailrace._content_types import guess_content_type, has_lines
from tailrace._exit_codes import ExitCode, exit_code_of
from tailrace._labels import parse_labels
from tailrace._malloc import tune_malloc
from tailrace._ranges import parse_range
from tailrace._references import resolve_reference, resolve_server
from tailrace_common_api import InvalidReference, TailraceError, error_classes

ID = "0123456789abcdefghijklmnopqrstuv"
EMPTY_HEAD = "10e45c7ce2292320743df94ee4c78a2a"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("TAILRACE_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nonsense"], "No such command"),
        (["status"], "Missing argument"),
        (["status", ID], "no server is named"),
        (["list"], "no server is named"),
        (["upload", "-"], "no server is named"),
        (["upload", "missing.log", "--server", "grpc://h:1"], "missing.log does not exist"),
        (["upload", ".", "--server", "grpc://h:1"], ". is a folder"),
        (["upload", ".", "--follow", "--server", "grpc://h:1"], ". is a folder"),
        (["upload", "/dev/null", "--follow", "--server", "grpc://h:1"], "/dev/null is no regular file"),
        (["upload", "a\x1b[31m\n", "--server", "grpc://h:1"], "a\\x1b[31m\\n does not exist"),
        (["upload", "-", "--follow", "--server", "grpc://h:1"], "--follow is for files"),
        (["upload", "f", "--until-exit", "1", "--server", "grpc://h:1"], "--until-exit needs --follow"),
        (["upload", "-", "--label", "x", "--server", "grpc://h:1"], "label 'x' is not K=V"),
        (["upload", "-", "--label", "a=1", "--label", "a=2", "--server", "grpc://h:1"], "given twice"),
        (["upload", "-", "--encoding", "klingon", "--server", "grpc://h:1"], "'klingon' is no known encoding"),
        (["upload", "-", "--content-type", "text", "--server", "grpc://h:1"], "is not type/subtype"),
        (["follow", ID, "--from", "1", "--last-lines", "1", "--server", "grpc://h:1"], "exclude each other"),
        (["follow", ID, "--from", "-1", "--server", "grpc://h:1"], "Invalid value for '--from'"),
        (["download", ID, "--range", "2:1", "--server", "grpc://h:1"], "ends before it starts"),
        (["download", ID, "--range", "x", "--server", "grpc://h:1"], "is not a range"),
        (["lines", ID, "1:2", "--last", "1", "--server", "grpc://h:1"], "exclude each other"),
        (["lines", ID, "1", "--server", "grpc://h:1"], "is not a range"),
        (["status", ID, "--server", "h:1"], "is not SCHEME://HOST"),
        (["list", "--server", f"grpc://h:1/r/{ID}"], "is a resource; its server is grpc://h:1"),
        (["status", ID, "--server", "carrier-pigeon://h:1"], "no installed transport serves 'carrier-pigeon://'"),
        (["status", f"carrier-pigeon://h/r/{ID}"], "no installed transport serves"),
        (["serve", "--config", "missing.toml"], "'missing.toml' does not exist"),
        (["head", "missing"], "missing does not exist"),
        (["bulk", "c", "missing", "--server", "grpc://h:1"], "missing does not exist"),
        (["bulk", "c", ".", "--server", "grpc://h:1"], ". is a folder"),
        (["bulk", "c", "-"], "no server is named"),
        (["query", "s", "x", "--server", "grpc://h:1"], "argument 'x' is not K=V"),
        (["query", "s", "max_results=1", "--max-results", "1", "--server", "grpc://h:1"], "exclude each other"),
        (["work", "q", "--server", "grpc://h:1"], "Missing argument"),
        (["work", "q", "--server", "grpc://h:1", "--", "no-such-command"], "there is no command no-such-command"),
        (["work", "q", "--once", "--max-records", "2", "--", "true"], "exclude each other"),
        (["work", "q", "--credit", "0", "--", "true"], "Invalid value for '--credit'"),
        (["queue", "q"], "no server is named"),
    ],
)
def test_wrong_usage_is_told_on_standard_error(
    arguments: list[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert complaint in errors


@pytest.mark.parametrize("reference", ["nonsense", ID[:-1], f"grpc://h:1/{ID}", "http://h/r/x", ""])
@pytest.mark.parametrize("command", ["status", "follow", "download", "lines", "delete"])
def test_malformed_references_have_their_own_code(
    command: str, reference: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([command, reference]) == 3
    assert "is neither a resource id nor a reference" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("reference", "server", "expected"),
    [
        (f"grpc://h:1/r/{ID}", None, "grpc://h:1"),
        (f"http://h:1/prefix/r/{ID}", None, "ws://h:1/prefix"),
        (f"https://h/r/{ID}", None, "wss://h"),
        (f"grpc://h:1/r/{ID}", "ws://other:2", "ws://other:2"),
        (f"grpc://h:1/r/{ID}", "http://other:2", "ws://other:2"),
        (ID, "ws://other:2", "ws://other:2"),
        (ID, None, "grpc://environment:3"),
    ],
)
def test_the_server_is_the_one_given_or_that_of_the_reference_or_of_the_environment(
    reference: str, server: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILRACE_SERVER", "grpc://environment:3")
    target = resolve_reference(reference, server)
    assert (target.url, target.id) == (expected, ID)
    assert resolve_server(server) == (expected if server else "grpc://environment:3")


def test_an_unreachable_server_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tailrace_impl_websocket")
    assert run(["status", ID, "--server", "ws://127.0.0.1:1"]) == 1
    output, errors = capfd.readouterr()
    assert output == ""
    assert "127.0.0.1:1" in errors


def test_head_of_a_file_and_of_standard_input(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert run(["head", "empty"]) == 0
    assert capfd.readouterr().out == EMPTY_HEAD + "\n"
    data = bytes(range(256)) * 2000
    (tmp_path / "data").write_bytes(data)
    assert run(["head", "data"]) == 0
    digest = capfd.readouterr().out
    assert len(digest) == 33
    outcome = subprocess.run(
        [sys.executable, "-m", "tailrace", "head", "-"], input=data, capture_output=True, check=True
    )
    assert outcome.stdout.decode() == digest


def test_every_command_has_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capfd.readouterr().out
    for name in _COMMANDS:
        assert f"  {name} " in text
        assert run([name, "--help"]) == 0
        assert f"Usage: tailrace {name}" in capfd.readouterr().out
    assert run(["--version"]) == 0
    assert "0.1.0" in capfd.readouterr().out


def test_every_error_has_an_exit_code() -> None:
    codes = {cls.code: exit_code_of(cls.__new__(cls)) for cls in error_classes()}
    assert set(codes.values()) <= set(ExitCode)
    expected = {
        "not_found": 3,
        "deleted": 3,
        "invalid_reference": 3,
        "integrity": 4,
        "damaged_block": 4,
        "quota_exceeded": 5,
        "permission_denied": 5,
        "unauthenticated": 5,
        "configuration": 2,
        "transport_missing": 2,
        "resource_failed": 1,
        "connection_lost": 1,
        "encoding": 1,
        "record_end_not_found": 3,
        "bulk_refused": 1,
        "bulk_conflict": 1,
        "query_failed": 1,
    }
    assert {name: codes[name] for name in expected} == expected
    assert exit_code_of(TailraceError("x")) == 1
    assert exit_code_of(InvalidReference(reference="x")) == 3


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("tailrace.main(['head', '-'], standalone_mode=False)", {"grpc", "rich", "anyio", "websockets", "uvloop"}),
        ("import tailrace", {"grpc", "rich", "anyio", "websockets", "click", "tailrace_impl_common"}),
    ],
)
def test_a_command_imports_what_it_needs_and_no_more(code: str, unwanted: set[str]) -> None:
    script = f"from tailrace._command import tailrace\n{code}" if "main" in code else code
    script += f"\nimport sys; print(sorted(set(sys.modules) & {unwanted!r}), file=sys.stderr)"
    outcome = subprocess.run([sys.executable, "-c", script], input=b"", capture_output=True, check=True)
    assert outcome.stderr.decode().strip() == "[]"


@pytest.mark.parametrize(
    ("name", "content_type", "lines"),
    [
        ("a.log", "text/plain", True),
        ("A.TXT", "text/plain", True),
        ("a.ndjson", "application/x-ndjson", True),
        ("a.jsonl", "application/jsonl", True),
        ("a.json", "application/json", True),
        ("a.yaml", "application/yaml", True),
        ("a.html", "text/html", True),
        ("a.png", "image/png", False),
        ("a.log.gz", "application/gzip", False),
        ("a.unheard-of", "application/octet-stream", False),
        ("noext", "application/octet-stream", False),
    ],
)
def test_types_are_guessed_from_names(name: str, content_type: str, lines: bool) -> None:
    assert guess_content_type(name) == content_type
    assert has_lines(content_type) is lines
    assert has_lines("application/problem+json; charset=utf-8")


def test_ranges_and_labels() -> None:
    assert [parse_range(text) for text in (":", "5:", ":5", "2:5", "5:5")] == [
        (0, None),
        (5, None),
        (0, 5),
        (2, 5),
        (5, 5),
    ]
    assert parse_labels(["a=1", "b=", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}


def test_malloc_is_tuned_where_there_is_glibc() -> None:
    libc = os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else None
    # In a process of its own, since it changes the whole process.
    script = "from tailrace._malloc import tune_malloc; print(tune_malloc())"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert outcome.stdout.strip() == str(bool(libc))
    assert callable(tune_malloc)


def test_the_group_knows_its_commands_only() -> None:
    assert set(_COMMANDS) == {
        "serve",
        "upload",
        "follow",
        "download",
        "lines",
        "status",
        "list",
        "delete",
        "head",
        "demo",
        "bench",
        "context",
        "token",
        "verify",
        "bulk",
        "query",
        "work",
        "queue",
    }
    assert tailrace.name == "tailrace"
