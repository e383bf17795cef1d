"""`tailrace query` against a real server, over both transports, as scripts use it."""

import json
import signal
from collections.abc import Iterator

import pytest
from tailrace_processes import Run, Server, Start
from tailrace_record_server import serving_records

from tailrace._commands.query import _lines, _objects
from tailrace_common_api import Record


@pytest.fixture(scope="module")
def record_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_records(tmp_path_factory.mktemp("records")) as running:
        yield running


@pytest.fixture(params=["grpc", "ws"])
def url(request: pytest.FixtureRequest, record_server: Server) -> str:
    found: str = record_server.urls[request.param]
    return found


def test_records_are_lines(run: Run, url: str) -> None:
    outcome = run("query", "numbers", "word=x=y", "first=7", "--max-results", "3", "--server", url)
    assert (outcome.code, outcome.errors) == (0, "")
    assert outcome.json() == [{"number": number, "word": "x=y"} for number in (7, 8, 9)]
    assert run("query", "numbers", "word=", "max_results=0", "--server", url).output == b""
    many = run("query", "numbers", "word=", "--max-results", "100000", "--server", url)
    assert [json.loads(line)["number"] for line in many.output.splitlines()] == list(range(1, 100_001))


def test_with_json_every_record_has_its_key_and_the_end_is_told(run: Run, url: str) -> None:
    outcome = run("query", "numbers", "word=x", "--max-results", "2", "--server", url, "--json")
    assert outcome.json() == [
        {"key": None, "record": {"number": 1, "word": "x"}},
        {"key": None, "record": {"number": 2, "word": "x"}},
        {"event": "ended", "records": 2},
    ]


def test_line_ends_within_records_make_no_lines() -> None:
    records = [Record(b'{"a":\n1}', "k\n"), Record(b'{"b":\r\n2}')]
    assert _lines(records, True) == b'{"a": 1}\n{"b":  2}\n'
    assert _objects(records, True) == b'{"key":"k\\n","record":{"a": 1}}\n{"key":null,"record":{"b":  2}}\n'
    assert _objects([Record(b"\xff\n", "\u00fc")], False) == b'{"key":"\\u00fc","base64":"/wo="}\n'
    assert _lines([Record(b"a\rb"), Record(b"c")], False) == b"a\rb\nc\n"


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["numbers"], 2, "word: missing; it is text"),
        (["numbers", "word=x", "first=many"], 2, "first: 'many' is not a whole number"),
        (["numbers", "word=x", "last=1"], 2, "last: unknown; known are first, max_results, word"),
        (["nowhere"], 3, "no source 'nowhere'"),
    ],
)
def test_mistakes_are_told_before_any_record(
    run: Run, url: str, arguments: list[str], code: int, complaint: str
) -> None:
    outcome = run("query", *arguments, "--server", url)
    assert (outcome.code, outcome.output, outcome.errors) == (code, b"", f"tailrace: {complaint}\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["query", "numbers", "--max-results", "x"], "'--max-results': 'x' is not a whole number"),
        (["query", "numbers", "--max-results", "1.5"], "'--max-results': '1.5' is not a whole number"),
        (["query", "numbers", "--max-results", "-1"], "'--max-results': -1 is not in the range x>=0."),
        (["work", "q", "--grace", "soon", "--", "true"], "'--grace': 'soon' is not a number"),
        (["work", "q", "--grace", "-0.5", "--", "true"], "'--grace': -0.5 is not in the range x>=0."),
    ],
)
def test_options_that_are_no_numbers_are_told_in_words(run: Run, arguments: list[str], complaint: str) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.errors.endswith(f"Error: Invalid value for {complaint}\n")


def test_records_come_while_the_query_runs_and_a_closed_pipe_ends_it(start: Start, url: str) -> None:
    # It would go on for days.
    process = start("query", "numbers", "word=x", "--server", url)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"number": 1, "word": "x"}
    process.stdout.close()
    assert process.wait() == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(start: Start, url: str, number: signal.Signals) -> None:
    process = start("query", "numbers", "word=x", "--server", url)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"number": 1, "word": "x"}
    process.send_signal(number)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, b"")
