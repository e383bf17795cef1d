"""Contexts on the command line, against a real server."""

import json
from pathlib import Path

import pytest
from tailrace_processes import Run, Server, Start

UNKNOWN = "0" * 32


@pytest.fixture(params=["grpc", "ws"])
def url(request: pytest.FixtureRequest, server: Server) -> str:
    return server.urls[request.param]


def create(run: Run, url: str, *arguments: str) -> str:
    made = run("context", "create", "--server", url, *arguments)
    assert (made.code, made.errors) == (0, "")
    (line,) = made.output.decode().splitlines()
    return line


def test_a_context_groups_uploads_until_it_is_closed(run: Run, url: str, tmp_path: Path) -> None:
    context = create(run, url, "--attribute", "run=7", "--attribute", "branch=main")
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n")
    for name in ("first", "second"):
        assert run("upload", "a.txt", "--name", name, "--context", context, "--server", url).code == 0
    assert run("upload", "a.txt", "--name", "elsewhere", "--server", url).code == 0

    listed = run("list", "--context", context, "--json", "--server", url).json()
    assert [status["metadata"]["name"] for status in listed] == ["first", "second"]  # type: ignore[index]  # JSON of any shape
    assert {status["metadata"]["context"] for status in listed} == {context}  # type: ignore[index]  # JSON of any shape

    (shown,) = run("context", "show", context, "--json", "--server", url).json()
    assert (shown["id"], shown["state"], shown["closed_at"]) == (context, "OPEN", None)
    assert shown["attributes"] == {"run": "7", "branch": "main"}
    assert (shown["resources"], shown["bytes"]) == (2, 16)
    text = run("context", "show", context, "--server", url).output.decode()
    assert f"context:      {context}\n" in text
    assert "attributes:   branch=main, run=7\n" in text
    assert "size:         16 bytes\n" in text

    (closed,) = run("context", "close", context, "--json", "--server", url).json()
    assert closed["state"] == "CLOSED"
    assert run("context", "close", context, "--json", "--server", url).json() == [closed]
    late = run("upload", "a.txt", "--context", context, "--server", url)
    assert (late.code, late.output) == (1, b"")
    assert f"context '{context}' is closed" in late.errors


def test_events_are_shown_as_far_as_they_go(run: Run, url: str, tmp_path: Path) -> None:
    context = create(run, url)
    assert len(run("context", "show", context, "--events", "--json", "--server", url).json()) == 1
    (tmp_path / "a.txt").write_bytes(b"one\n")
    assert run("upload", "a.txt", "--context", context, "--server", url).code == 0
    shown, *events = run("context", "show", context, "--events", "--json", "--server", url).json()
    assert shown["last_event"] == len(events)
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert [event["kind"] for event in events] == ["CREATED", *["STATUS_CHANGED"] * (len(events) - 1)]
    assert (events[-1]["state"], events[-1]["size"]) == ("COMPLETED", 4)
    last = run("context", "show", context, "--events", "--server", url).output.decode().splitlines()[-1]
    assert last.endswith(f"STATUS_CHANGED  {events[-1]['id']}  COMPLETED  4 bytes")
    # Without being asked, nothing is said of them.
    assert "STATUS_CHANGED" not in run("context", "show", context, "--server", url).output.decode()


def test_events_are_followed_until_the_context_is_closed(start: Start, run: Run, url: str, tmp_path: Path) -> None:
    context = create(run, url)
    following = start("context", "show", context, "--follow", "--json", "--server", url)
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["id"] == context
    upload = start("upload", "-", "--name", "x", "--context", context, "--server", url)
    created = json.loads(following.stdout.readline())
    assert (created["kind"], created["sequence"]) == ("CREATED", 1)
    assert run("context", "close", context, "--server", url).code == 0
    rest = [json.loads(line) for line in following.stdout.read().splitlines()]
    assert following.wait() == 0
    assert rest[-1]["kind"] == "CLOSED"
    failed = [event for event in rest if event["state"] == "FAILED"]
    assert [(event["id"], event["kind"]) for event in failed] == [(created["id"], "STATUS_CHANGED")]
    assert failed[0]["message"]
    # Its uploader is told, and does not wait for more input.
    _, errors = upload.communicate()
    assert upload.returncode == 1
    assert b"is closed" in errors


@pytest.mark.parametrize("command", [("show",), ("show", "--follow"), ("close",)])
def test_unknown_and_malformed_contexts_have_the_code_of_references(
    run: Run, url: str, command: tuple[str, ...]
) -> None:
    unknown = run("context", *command, UNKNOWN, "--server", url)
    assert (unknown.code, unknown.output) == (3, b"")
    assert f"no context '{UNKNOWN}'" in unknown.errors
    malformed = run("context", *command, "nonsense", "--server", url)
    assert (malformed.code, malformed.output) == (3, b"")


def test_uploads_into_an_unknown_context_are_refused(run: Run, url: str) -> None:
    refused = run("upload", "-", "--context", UNKNOWN, "--server", url, stdin=b"x")
    assert (refused.code, refused.output) == (3, b"")
    assert f"no context '{UNKNOWN}'" in refused.errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("create", "--attribute", "x"), "attribute 'x' is not K=V"),
        (("create", "--attribute", "a=1", "--attribute", "a=2"), "attribute 'a' is given twice"),
        (("create", "--attribute", "a=" + "x" * 1025), "attributes"),
        (("show",), "Missing argument"),
        (("open", UNKNOWN), "No such command"),
    ],
)
def test_wrong_usage(run: Run, url: str, arguments: tuple[str, ...], complaint: str) -> None:
    outcome = run("context", *arguments, *([] if arguments[0] == "open" else ["--server", url]))
    assert (outcome.code, outcome.output) == (2, b"")
    assert complaint in outcome.errors
