"""The command line against a real server, over both transports, as scripts use it."""

import errno
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tailrace_processes import ENVIRONMENT, PROGRAM, Outcome, Run, Server, Start, serving

from tailrace_impl_common import head_of

SCHEMES = ["grpc", "ws"]
UNKNOWN = "0" * 32


@pytest.fixture(params=SCHEMES)
def url(request: pytest.FixtureRequest, server: Server) -> str:
    found: str = server.urls[request.param]
    return found


@pytest.fixture
def other(url: str, server: Server) -> str:
    """URL of the other transport."""
    return server.ws if url == server.grpc else server.grpc


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def begin(start: Start, url: str, *arguments: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start to upload standard input; return the process and the reference, with nothing sent yet."""
    process = start("upload", "-", "--server", url, *arguments)
    line = line_of(process).decode().strip()
    return process, json.loads(line)["reference"] if "--json" in arguments else line


def feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)


def status_of(run: Run, reference: str) -> dict[str, Any]:
    (status,) = run("status", reference, "--json").json()
    return status


def upload(run: Run, url: str, data: bytes, *arguments: str) -> str:
    outcome = run("upload", "-", "--server", url, *arguments, stdin=data)
    assert outcome.code == 0, outcome.errors
    return outcome.output.decode().strip()


def check(outcome: Outcome, code: int, output: bytes = b"") -> str:
    assert (outcome.code, outcome.output) == (code, output), outcome.errors
    return outcome.errors


def test_a_file_goes_up_over_one_transport_and_comes_down_over_the_other(
    run: Run, url: str, other: str, tmp_path: Path
) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "photo.png").write_bytes(data)
    outcome = run("upload", "photo.png", "--server", url, "--label", "day=monday", "--label", "run=7")
    assert outcome.code == 0
    assert outcome.errors == ""
    reference = outcome.output.decode().removesuffix("\n")
    assert reference.startswith(f"{url}/r/")

    status = status_of(run, reference)
    assert status["reference"] == reference
    assert status["id"] == reference.rpartition("/")[2]
    assert status["state"] == "COMPLETED"
    assert (status["size"], status["lines"], status["reason"]) == (len(data), None, None)
    assert status["head"] == head_of(data).hex()
    assert status["metadata"] == {
        "name": "photo.png",
        "content_type": "image/png",
        "lines": False,
        "labels": {"day": "monday", "run": "7"},
        "context": None,
    }
    assert f"{other}/r/{status['id']}" in status["alternatives"]

    check(run("download", reference, "--server", other), 0, data)
    check(run("download", status["id"], TAILRACE_SERVER=other), 0, data)
    check(run("download", reference, "--range", "5:1000000"), 0, data[5:1_000_000])
    check(run("download", reference, "--range", "2999990:"), 0, data[-10:])
    check(run("download", reference, "--range", ":7", "-o", "-"), 0, data[:7])
    check(run("follow", reference, "--from", "2999999"), 0, data[-1:])
    check(run("follow", reference, "--last-bytes", "10"), 0, data[-10:])


def test_http_references_are_opened(run: Run, server: Server) -> None:
    reference = upload(run, server.http, b"text\n")
    check(run("download", f"{server.http}/r/{reference.rpartition('/')[2]}"), 0, b"text\n")


def test_a_live_upload_is_followed_before_it_ends(start: Start, run: Run, url: str, other: str) -> None:
    uploader, reference = begin(start, url)
    follower = start("follow", reference, "--server", other)
    feed(uploader, b"one\n")
    assert line_of(follower) == b"one\n"
    # Not a whole line, and passed on all the same.
    feed(uploader, b"tw")
    assert follower.stdout is not None
    assert follower.stdout.read(2) == b"tw"
    feed(uploader, b"o\nthree")
    assert line_of(follower) == b"o\n"
    assert follower.stdout.read(5) == b"three"
    check(run("lines", reference, "0:"), 0, b"one\ntwo\n")
    check(run("lines", reference, "--last", "1"), 0, b"two\n")
    assert status_of(run, reference)["state"] == "IN_PROGRESS"
    assert uploader.stdin is not None
    uploader.stdin.close()
    assert uploader.wait() == 0
    assert follower.wait() == 0
    assert follower.stdout.read() == b""
    assert uploader.stdout is not None
    assert uploader.stdout.read() == b""
    status = status_of(run, reference)
    assert (status["state"], status["lines"], status["size"]) == ("COMPLETED", 3, 13)
    assert status["metadata"]["content_type"] == "text/plain"
    check(run("lines", reference), 0, b"one\ntwo\nthree")
    check(run("lines", reference, ":1"), 0, b"one\n")
    check(run("lines", reference, "1:"), 0, b"two\nthree")
    check(run("lines", reference, "1:2"), 0, b"two\n")
    check(run("follow", reference, "--last-lines", "2"), 0, b"two\nthree")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_input_and_completes(
    start: Start, run: Run, url: str, number: signal.Signals
) -> None:
    uploader, reference = begin(start, url, "--json")
    feed(uploader, b"before\n")
    follower = start("follow", reference)
    assert line_of(follower) == b"before\n"
    uploader.send_signal(number)
    event = json.loads(line_of(uploader))
    assert uploader.wait() == 0
    assert event["event"] == "finished"
    assert event["status"] == status_of(run, reference)
    assert event["status"]["state"] == "COMPLETED"
    assert follower.wait() == 0


def test_an_atomic_upload_is_aborted_by_the_first_signal_and_leaves_nothing(start: Start, run: Run, url: str) -> None:
    uploader, reference = begin(start, url, "--atomic", "--json")
    feed(uploader, b"unseen\n")
    check(run("status", reference), 3)
    uploader.send_signal(signal.SIGINT)
    event = json.loads(line_of(uploader))
    assert uploader.wait() == 130
    assert (event["event"], event["error"]["code"], event["status"]) == ("failed", "upload_aborted", None)
    check(run("status", reference), 3)


def test_an_atomic_upload_appears_when_it_is_complete(start: Start, run: Run, url: str) -> None:
    uploader, reference = begin(start, url, "--atomic")
    feed(uploader, b"seen at once\n")
    check(run("follow", reference), 3)
    assert uploader.stdin is not None
    uploader.stdin.close()
    assert uploader.wait() == 0
    check(run("follow", reference), 0, b"seen at once\n")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_second_signal_aborts(start: Start, scheme: str, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        uploader, _ = begin(start, server.urls[scheme], "--json")
        # A server that does not answer: the upload cannot complete, only be aborted.
        server.process.send_signal(signal.SIGSTOP)
        uploader.send_signal(signal.SIGINT)
        uploader.send_signal(signal.SIGTERM)
        event = json.loads(line_of(uploader))
        assert uploader.wait() == 130
        assert event["event"] == "failed"
        assert event["error"] == {"code": "upload_aborted", "message": "the upload was aborted: interrupted"}
        server.process.send_signal(signal.SIGCONT)


def test_a_follower_that_is_interrupted_says_so(start: Start, url: str) -> None:
    uploader, reference = begin(start, url)
    feed(uploader, b"x\n")
    follower = start("follow", reference)
    assert line_of(follower) == b"x\n"
    follower.send_signal(signal.SIGINT)
    assert follower.wait() == 130
    assert follower.stderr is not None
    assert follower.stderr.read() == b""


def test_a_closed_output_pipe_ends_silently(start: Start, url: str) -> None:
    uploader, reference = begin(start, url)
    feed(uploader, b"x\n")
    follower = start("follow", reference)
    assert line_of(follower) == b"x\n"
    assert follower.stdout is not None
    # Nothing more is written to the pipe; that nobody reads it is noticed all the same.
    follower.stdout.close()
    assert follower.wait() == 0
    assert follower.stderr is not None
    assert follower.stderr.read() == b""
    watcher = start("status", reference, "--watch", "--json")
    line_of(watcher)
    assert watcher.stdout is not None
    watcher.stdout.close()
    feed(uploader, b"y\n")
    assert watcher.wait() == 0
    assert watcher.stderr is not None
    assert watcher.stderr.read() == b""


def test_a_failed_resource_is_followed_to_its_last_byte_and_then_is_a_failure(start: Start, run: Run, url: str) -> None:
    uploader, reference = begin(start, url, "--encoding", "utf-8", "--json")
    follower = start("follow", reference, "-o", "copy")
    feed(uploader, b"good\n")
    watcher = start("status", reference, "--watch", "--json")
    while json.loads(line_of(watcher))["size"] < 5:
        pass
    feed(uploader, b"bad \xff\n")
    event = json.loads(line_of(uploader))
    assert uploader.wait() == 1
    assert event["event"] == "failed"
    assert event["error"]["code"] == "encoding"
    assert (event["status"]["state"], event["status"]["size"]) == ("FAILED", 5)
    assert "EncodingError" in event["status"]["reason"]
    assert follower.wait() == 1
    assert follower.stderr is not None
    assert b"failed after 5 bytes" in follower.stderr.read()
    check(run("follow", reference), 1, b"good\n")
    check(run("download", reference), 0, b"good\n")
    assert watcher.stdout is not None
    assert json.loads(watcher.stdout.read().splitlines()[-1]) == event["status"]
    assert watcher.wait() == 0


def test_what_is_deleted_ends_for_everyone(start: Start, run: Run, url: str, other: str) -> None:
    uploader, reference = begin(start, url, "--json")
    feed(uploader, b"x\n")
    follower = start("follow", reference, "--server", other)
    watcher = start("status", reference, "--watch", "--json")
    assert line_of(follower) == b"x\n"
    line_of(watcher)
    check(run("delete", reference), 0)
    event = json.loads(line_of(uploader))
    assert (event["event"], event["error"]["code"], event["status"]) == ("failed", "deleted", None)
    assert [process.wait() for process in (uploader, follower, watcher)] == [3, 3, 3]
    for command in ("status", "follow", "download", "lines", "delete"):
        assert run(command, reference).code == 3


class TestDownloadToFile:
    DATA = os.urandom(2_000_000)

    @pytest.fixture
    def reference(self, run: Run, url: str) -> str:
        return upload(run, url, self.DATA, "--no-lines")

    def test_a_new_file_is_made(self, run: Run, reference: str, tmp_path: Path) -> None:
        check(run("download", reference, "-o", "file"), 0)
        assert (tmp_path / "file").read_bytes() == self.DATA

    @pytest.mark.parametrize("length", [0, 131_073, 2_000_000])
    def test_a_prefix_is_continued(self, run: Run, reference: str, tmp_path: Path, length: int) -> None:
        path = tmp_path / "file"
        path.write_bytes(self.DATA[:length])
        inode = path.stat().st_ino
        check(run("download", reference, "-o", "file"), 0)
        assert path.read_bytes() == self.DATA
        assert path.stat().st_ino == inode

    @pytest.mark.parametrize("content", [b"other", DATA[:1000] + b"x" + DATA[1001:5000], DATA + b"x"])
    def test_anything_else_is_left_as_it_is(self, run: Run, reference: str, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        errors = check(run("download", reference, "-o", "file"), 4)
        assert "'file'" in errors
        assert path.read_bytes() == content

    @pytest.mark.parametrize("arguments", [("download", "--range", "0:10"), ("follow",)])
    def test_ranges_and_followers_refuse_an_existing_file(
        self, run: Run, reference: str, tmp_path: Path, arguments: tuple[str, ...]
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        command, *rest = arguments
        errors = check(run(command, reference, *rest, "-o", "file"), 2)
        assert "exists" in errors
        assert (tmp_path / "file").read_bytes() == b""
        check(run(command, reference, *rest, "-o", "new"), 0)
        assert (tmp_path / "new").read_bytes() == (self.DATA[:10] if rest else self.DATA)

    def test_an_unknown_resource_makes_no_file(self, run: Run, url: str, tmp_path: Path) -> None:
        check(run("download", UNKNOWN, "--server", url, "-o", "file"), 3)
        assert not (tmp_path / "file").exists()

    def test_a_growing_resource_is_saved_as_far_as_it_is_and_continued_later(
        self, start: Start, run: Run, url: str, tmp_path: Path
    ) -> None:
        uploader, reference = begin(start, url)
        follower = start("follow", reference)
        feed(uploader, b"first\n")
        line_of(follower)
        check(run("download", reference, "-o", "file"), 0)
        assert (tmp_path / "file").read_bytes() == b"first\n"
        feed(uploader, b"second\n")
        assert uploader.stdin is not None
        uploader.stdin.close()
        assert uploader.wait() == 0
        check(run("download", reference, "-o", "file"), 0)
        assert (tmp_path / "file").read_bytes() == b"first\nsecond\n"


def test_a_growing_file_is_uploaded_until_its_writer_has_ended(
    start: Start, run: Run, url: str, tmp_path: Path
) -> None:
    path = tmp_path / "build.log"
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as writer:
        uploader = start("upload", "build.log", "--follow", "--until-exit", str(writer.pid), "--server", url, "--json")
        reference = json.loads(line_of(uploader))["reference"]
        follower = start("follow", reference)
        with path.open("wb", buffering=0) as file:
            file.write(b"one\n")
            assert line_of(follower) == b"one\n"
            file.write(b"two\n")
            assert line_of(follower) == b"two\n"
            file.write(b"the end")
        writer.communicate()
    event = json.loads(line_of(uploader))
    assert uploader.wait() == 0
    assert event["status"]["metadata"]["name"] == "build.log"
    assert event["status"]["lines"] == 3
    assert follower.wait() == 0
    check(run("download", reference), 0, b"one\ntwo\nthe end")


def test_a_followed_file_ends_with_a_signal_and_a_truncated_one_is_an_error(
    start: Start, run: Run, url: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"line\n")
    for number, code in ((signal.SIGINT, 0), (None, 4)):
        uploader = start("upload", "a.log", "--follow", "--server", url)
        reference = line_of(uploader).decode().strip()
        follower = start("follow", reference)
        assert line_of(follower) == b"line\n"
        if number is None:
            os.truncate(path, 0)
        else:
            uploader.send_signal(number)
        assert uploader.wait() == code
        assert follower.wait() == (0 if code == 0 else 1)


def test_text_is_uploaded_as_utf_8(run: Run, url: str) -> None:
    text = "Grüße\nπ\n"
    reference = upload(run, url, text.encode("utf-16"), "--encoding", "utf-16", "--name", "gruss.txt")
    check(run("download", reference), 0, text.encode())
    assert status_of(run, reference)["metadata"]["content_type"] == "text/plain; charset=utf-8"


def test_empty_input_is_a_resource(run: Run, url: str) -> None:
    reference = upload(run, url, b"")
    status = status_of(run, reference)
    assert (status["state"], status["size"], status["lines"]) == ("COMPLETED", 0, 0)
    assert status["head"] == "10e45c7ce2292320743df94ee4c78a2a"
    check(run("follow", reference), 0)
    check(run("lines", reference), 0)


def test_lines_need_line_access(run: Run, url: str) -> None:
    reference = upload(run, url, b"a\nb\n", "--no-lines")
    errors = check(run("lines", reference), 1)
    assert "without line access" in errors
    assert status_of(run, reference)["lines"] is None


def test_ranges_beyond_the_end_are_failures_that_name_the_size(run: Run, url: str) -> None:
    reference = upload(run, url, b"a\nb\n")
    assert "4 bytes" in check(run("download", reference, "--range", "0:5"), 1)
    assert "2 lines" in check(run("lines", reference, "3:"), 1)
    check(run("lines", reference, "1:100"), 0, b"b\n")


def test_resources_are_listed_by_label_and_state(run: Run, url: str) -> None:
    label = f"test={os.urandom(8).hex()}"
    references = [upload(run, url, b"x\n", "--label", label, "--name", f"n{number}") for number in range(3)]
    outcome = run("list", "--server", url, "--label", label, "--json")
    assert [entry["reference"] for entry in outcome.json()] == references
    text = run("list", "--server", url, "--label", label, "--state", "completed").output.decode()
    assert [line.split()[0] for line in text.splitlines()] == references
    check(run("list", "--server", url, "--label", label, "--state", "failed"), 0)
    assert [line.split()[-1] for line in text.splitlines()] == ["n0", "n1", "n2"]
    check(run("delete", references[0]), 0)
    assert len(run("list", "--server", url, "--label", label, "--json").json()) == 2


def test_status_is_readable_and_shows_no_control_characters(run: Run, url: str) -> None:
    reference = upload(run, url, b"x\n", "--label", "a=\u202eb")
    text = run("status", reference).output.decode()
    assert f"reference:    {reference}\n" in text
    assert "state:        COMPLETED" in text
    assert "a=\\u202eb" in text
    check(run("status", UNKNOWN, "--server", url), 3)


def test_progress_is_shown_on_a_terminal_and_output_stays_pure(run: Run, url: str, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(2_000_000))
    for command in (
        ["upload", "data.bin", "--server", url],
        ["download", upload(run, url, bytes(2_000_000)), "-o", "copy.bin"],
    ):
        terminal, its_end = os.openpty()
        try:
            with subprocess.Popen(
                [*PROGRAM, *command],
                cwd=tmp_path,
                env=ENVIRONMENT | {"TERM": "xterm"},
                stdout=subprocess.PIPE,
                stderr=its_end,
            ) as process:
                os.close(its_end)
                shown = shown_on(terminal)
                output, _ = process.communicate()
        finally:
            os.close(terminal)
        assert process.returncode == 0
        assert b"2.0/2.0 MB" in shown
        assert output.decode() == (f"{output.decode().strip()}\n" if command[0] == "upload" else "")


def shown_on(terminal: int) -> bytes:
    """Return what is shown on a terminal until nobody has its other end any more."""
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return shown
