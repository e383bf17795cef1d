"""What can be uploaded: files of any name, what is typed, what cannot be followed."""

import os
import subprocess
from pathlib import Path

import pytest
from tailrace_processes import ENVIRONMENT, PROGRAM, Run, Server


@pytest.fixture(params=["grpc", "ws"])
def url(request: pytest.FixtureRequest, server: Server) -> str:
    found: str = server.urls[request.param]
    return found


@pytest.mark.parametrize(("name", "shown"), [(b"a\nb\x1b[31m", "a\\nb\\x1b[31m"), (b"c\xff", "c\\udcff")])
def test_a_file_may_have_any_name(run: Run, url: str, tmp_path: Path, name: bytes, shown: str) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    with open(path, "wb") as file:
        file.write(b"x\n")
    events = run("upload", os.fsdecode(path), "--json", "--server", url).json()
    assert [event["event"] for event in events] == ["accepted", "finished"]
    status = events[1]["status"]
    assert isinstance(status, dict)
    assert (status["state"], status["metadata"]["name"]) == ("COMPLETED", shown)


def test_what_is_typed_is_not_written_over_by_progress(run: Run, url: str, tmp_path: Path) -> None:
    keyboard, terminal = os.openpty()
    screen, errors = os.openpty()
    try:
        with subprocess.Popen(
            [*PROGRAM, "upload", "-", "--server", url],
            cwd=tmp_path,
            env=ENVIRONMENT | {"TERM": "xterm"},
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process:
            os.write(keyboard, b"typed\n\x04")
            assert process.stdout is not None
            reference = process.stdout.read().decode().strip()
        assert process.returncode == 0
        assert run("download", reference).output == b"typed\n"
        os.set_blocking(screen, False)
        with pytest.raises(BlockingIOError):
            os.read(screen, 1)
    finally:
        for descriptor in (keyboard, terminal, screen, errors):
            os.close(descriptor)
