"""`tailrace bulk` against a real server, over both transports, as scripts use it."""

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tailrace_processes import Run, Server, Start, needs_server
from tailrace_record_server import serving_records

GOOD = b'{"email":"abc"}\n\n{"email":"def"}\r\n  \n{"email":"ghi"}'
BAD = b'{"email":"abc"}\n\n{"email":"d"}\n\n{"mail":"ghi"}\nx\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def record_server(folder: Path) -> Iterator[Server]:
    with serving_records(folder) as running:
        yield running


@pytest.fixture(params=["grpc", "ws"])
def url(request: pytest.FixtureRequest, record_server: Server) -> str:
    found: str = record_server.urls[request.param]
    return found


@pytest.fixture
def contacts(folder: Path, record_server: Server) -> "Table":
    table = Table(folder / "data" / "records" / "contacts.sqlite")
    table.begin()
    return table


class Table:
    """What a reader of the database sees of the records that came since a test began."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = 0

    def begin(self) -> None:
        self._before = len(self._all())

    def rows(self) -> list[tuple[str | None, str]]:
        return self._all()[self._before :]

    def _all(self) -> list[tuple[str | None, str]]:
        with closing(sqlite3.connect(self._path)) as database:
            rows = database.execute("SELECT key, CAST(record AS TEXT) FROM contacts ORDER BY position").fetchall()
        return [tuple(row) for row in rows]


def test_lines_become_records(run: Run, url: str, contacts: Table, tmp_path: Path) -> None:
    (tmp_path / "contacts.ndjson").write_bytes(GOOD)
    outcome = run("bulk", "contacts", "contacts.ndjson", "--server", url)
    assert (outcome.code, outcome.errors) == (0, "")
    assert outcome.output.startswith(b"contacts: 3 records, 45 bytes committed  ")
    assert contacts.rows() == [(None, '{"email":"abc"}'), (None, '{"email":"def"}'), (None, '{"email":"ghi"}')]


def test_the_result_as_json_and_keys_from_a_field(run: Run, url: str, contacts: Table) -> None:
    outcome = run("bulk", "contacts", "-", "--server", url, "--json", "--key-field", "email", stdin=GOOD)
    assert outcome.code == 0
    (result,) = outcome.json()
    assert isinstance(result["committed_at"], float)
    assert len(str(result["digest"])) == len(str(result["id"])) == 32
    fields = {key: value for key, value in result.items() if key not in ("committed_at", "digest", "id")}
    assert fields == {"event": "committed", "collection": "contacts", "records": 3, "size": 54, "repeated": False}
    assert [key for key, _ in contacts.rows()] == ["abc", "def", "ghi"]


def test_the_same_key_commits_once(run: Run, url: str, contacts: Table) -> None:
    command = ("bulk", "contacts", "-", "--server", url, "--json", "--key", f"key of {url}")
    (first,) = run(*command, stdin=GOOD).json()
    (second,) = run(*command, stdin=GOOD).json()
    assert second == {**first, "repeated": True}
    assert len(contacts.rows()) == 3
    other = run(*command, stdin=GOOD + b'\n{"email":"more"}')
    assert other.code == 1
    assert other.json()[0]["error"] == {
        "code": "bulk_conflict",
        "message": f"the idempotency key was used for bulk '{first['id']}' with other content",
    }
    assert len(contacts.rows()) == 3


def test_a_bad_record_is_named_by_its_line_and_nothing_is_kept(
    run: Run, url: str, contacts: Table, tmp_path: Path
) -> None:
    (tmp_path / "bad.ndjson").write_bytes(BAD)
    outcome = run("bulk", "contacts", "bad.ndjson", "--server", url)
    assert (outcome.code, outcome.output) == (1, b"")
    # Once, and by its line alone.
    assert outcome.errors == 'tailrace: bad.ndjson:3: email: "d" is shorter than 3 characters\n'
    assert contacts.rows() == []


def test_all_bad_records_are_reported(run: Run, url: str, contacts: Table) -> None:
    outcome = run("bulk", "contacts", "-", "--server", url, "--all-problems", "--json", stdin=BAD)
    assert outcome.code == 1
    (failed,) = outcome.json()
    problems = failed["problems"]
    assert isinstance(problems, list)
    assert [(problem["line"], problem["index"], problem["field"]) for problem in problems] == [
        (3, 1, "email"),
        (5, 2, "email"),
        (6, 3, None),
    ]
    assert (failed["event"], failed["total"]) == ("failed", 3)
    assert [line.partition(": ")[2][:17] for line in outcome.errors.splitlines()] == [
        "standard input:3:",
        "standard input:5:",
        "standard input:6:",
    ]
    assert contacts.rows() == []


def test_more_bad_records_than_are_named_are_counted(run: Run, url: str, contacts: Table) -> None:
    outcome = run("bulk", "contacts", "-", "--server", url, "--all-problems", stdin=b"x\n" * 5000)
    *named, last = outcome.errors.splitlines()
    assert [line.split(": ")[1] for line in named] == [f"standard input:{line + 1}" for line in range(len(named))]
    assert last == f"tailrace: standard input: and {5000 - len(named):,} more; nothing was committed"
    assert (outcome.code, contacts.rows()) == (1, [])


@pytest.mark.parametrize(
    ("data", "arguments", "complaint"),
    [
        (b'{"email":"abc"}\n\n{"mail":1}', ["--key-field", "email"], "standard input:3: email: is no key"),
        (b"{", ["--key-field", "email"], "standard input:1: is not JSON"),
        (b'{"email":"abc"}\n' + b"x" * 2_000_000, [], "standard input:2: more than 1048576 bytes in a line"),
        (b'{"email":"abc"}\n' + b"x" * 1_048_577 + b"\n", [], "standard input:2: 1048577 bytes; at most 1048576"),
        (b'{"email":"%b"}' % (b"k" * 300), ["--key-field", "email"], "standard input:1: key: "),
        (b"", [], "the bulk has no records"),
        (b"\n \n", [], "the bulk has no records"),
    ],
)
def test_what_cannot_be_a_record_ends_the_bulk(
    run: Run, url: str, contacts: Table, data: bytes, arguments: list[str], complaint: str
) -> None:
    outcome = run("bulk", "contacts", "-", "--server", url, *arguments, stdin=data)
    assert (outcome.code, outcome.output) == (1, b"")
    assert outcome.errors.splitlines()[0].startswith(f"tailrace: {complaint}")
    assert contacts.rows() == []


def test_work_is_fed_with_a_priority(run: Run, url: str) -> None:
    outcome = run("bulk", "letters", "-", "--server", url, "--priority", "7", stdin=GOOD)
    assert outcome.code == 0
    assert outcome.output.startswith(b"letters: 3 records, ")
    refused = run("bulk", "contacts", "-", "--server", url, "--priority", "7", stdin=GOOD)
    assert (refused.code, refused.errors) == (2, "tailrace: priority: a collection has no priorities\n")
    assert run("bulk", "letters", "-", "--server", url, "--priority", "1001", stdin=GOOD).code == 2


def test_other_mistakes_have_the_exit_codes_of_all_commands(run: Run, url: str) -> None:
    outcome = run("bulk", "nowhere", "-", "--server", url, "--json", stdin=GOOD)
    assert (outcome.code, outcome.errors) == (3, "tailrace: no collection or queue 'nowhere'\n")
    (failed,) = outcome.json()
    assert failed["error"] == {"code": "record_end_not_found", "message": "no collection or queue 'nowhere'"}
    assert failed["problems"] == []
    assert run("bulk", "contacts", "-", "--server", url, "--content-type", "text/plain", stdin=GOOD).code == 2
    assert run("bulk", "notes", "-", "--server", url, "--content-type", "text/plain", stdin=b"no JSON").code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bulk_leaves_nothing(
    start: Start, run: Run, url: str, contacts: Table, number: signal.Signals
) -> None:
    process = start("bulk", "contacts", "-", "--server", url, "--json")
    assert process.stdin is not None
    # More than the pipe holds: when it is written, the command reads.
    process.stdin.write(b'{"email":"never"}\n' * 10_000)
    process.send_signal(number)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (130, b"")
    assert json.loads(output)["error"]["message"] == "the upload was aborted: interrupted"
    assert contacts.rows() == []


@pytest.mark.parametrize("scheme", ["grpc", "ws"])
def test_a_server_that_dies_is_noticed_while_there_is_no_input(start: Start, tmp_path: Path, scheme: str) -> None:
    needs_server()
    (tmp_path / "tailrace.toml").write_text('[collections.notes]\ncontent_type = "text/plain"\n')
    server = start("serve", "--json", "--data", "data", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert server.stdout is not None
    urls = json.loads(server.stdout.readline())
    process = start("bulk", "notes", "-", "--server", urls[scheme])
    assert process.stdin is not None
    # More than may be on its way: when it is written, the server has some of it.
    for _ in range(12):
        process.stdin.write(b"x" * 1_000_000 + b"\n")
    server.kill()
    # The input is open and says nothing.
    assert process.wait() == 1
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read() == b""
    (line,) = process.stderr.read().decode().splitlines()
    assert line.startswith("tailrace: ")
    assert line.endswith("; nothing was committed")


def test_an_input_that_cannot_be_read_is_named(run: Run, url: str, contacts: Table) -> None:
    outcome = run("bulk", "contacts", "/proc/self/mem", "--server", url)
    assert outcome.code == 1
    assert outcome.errors == "tailrace: /proc/self/mem: Input/output error\n"
    assert contacts.rows() == []
