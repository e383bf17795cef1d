"""`tailrace work` and `tailrace queue` against a real server, over both transports, as scripts use them."""

import itertools
import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tailrace_processes import Outcome, Run, Server, Start
from tailrace_record_server import serving_records

import tailrace
from tailrace._working import describe_code

# Says which record it got, and where it got what from.
TELL = 'echo "$TAILRACE_RECORD_ATTEMPT $TAILRACE_RECORD_PRIORITY ${TAILRACE_RECORD_KEY-none} $(cat)"'
# Ends when a file of this name is there.
UNTIL = "while [ ! -e {} ]; do sleep 0.02; done"


NUMBERS = itertools.count()
MOST = 100


@pytest.fixture(scope="module")
def record_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    queues = [f"[queues.letters{number}]\n[queues.brief{number}]\nlease = 2.0\n" for number in range(MOST)]
    with serving_records(tmp_path_factory.mktemp("records"), "".join(queues)) as running:
        yield running


@pytest.fixture(params=["grpc", "ws"])
def url(request: pytest.FixtureRequest, record_server: Server) -> str:
    found: str = record_server.urls[request.param]
    return found


class Queue:
    """A queue that no other test uses."""

    def __init__(self, client: tailrace.sync.Client, name: str) -> None:
        self._client = client
        self.name = name

    def feed(self, *records: Mapping[str, object], priority: int = 0, key: str | None = None) -> None:
        with self._client.bulk(self.name, priority=priority) as bulk:
            for record in records:
                bulk.send(record, key=key)

    def waiting(self) -> tuple[int, int, int, int]:
        """Return how many records are ready, delayed, in flight, and dead."""
        found = self._client.queue_figures(self.name)
        return found.ready, found.delayed, found.in_flight, found.dead


@pytest.fixture
def client(url: str) -> Iterator[tailrace.sync.Client]:
    with tailrace.sync.connect(url) as client:
        yield client


@pytest.fixture
def letters(client: tailrace.sync.Client) -> Queue:
    return Queue(client, f"letters{next(NUMBERS) % MOST}")


@pytest.fixture
def brief(client: tailrace.sync.Client) -> Queue:
    """One with short leases, and yet longer than an extension may be held up on a busy machine."""
    return Queue(client, f"brief{next(NUMBERS) % MOST}")


def answers(outcome: Outcome) -> list[tuple[object, object]]:
    return [(event["verdict"], event["exit_code"]) for event in outcome.json() if event["event"] == "answered"]


def test_a_command_gets_each_record_and_its_circumstances(run: Run, url: str, letters: Queue) -> None:
    letters.feed({"n": 1})
    letters.feed({"n": 2}, key="second")
    letters.feed({"n": 3}, priority=5)
    outcome = run("work", letters.name, "--drain", "--server", url, "--", "sh", "-c", TELL)
    assert outcome.code == 0
    assert outcome.output.decode().splitlines() == ['1 5 none {"n":3}', '1 0 none {"n":1}', '1 0 second {"n":2}']
    assert outcome.errors.splitlines()[-1] == (
        "tailrace: 3 done, 0 to be delivered again, 0 to the dead letters, 0 given back, 0 lost to somebody else"
    )
    assert letters.waiting() == (0, 0, 0, 0)


def test_no_environment_of_an_outer_record_is_left(run: Run, url: str, letters: Queue) -> None:
    letters.feed({})
    environment = {"TAILRACE_RECORD_KEY": "of another one", "TAILRACE_RECORD_ID": "7"}
    outcome = run("work", letters.name, "--once", "--server", url, "--", "sh", "-c", TELL, **environment)
    assert outcome.output == b"1 0 none {}\n"


def test_a_failed_command_lets_its_record_come_again(run: Run, url: str, letters: Queue) -> None:
    letters.feed({"n": 1})
    script = '[ "$TAILRACE_RECORD_ATTEMPT" -ge 3 ] || exit 7'
    options = ("--drain", "--retry-delay", "0.05", "--json", "--server", url)
    outcome = run("work", letters.name, *options, "--", "sh", "-c", script)
    assert outcome.code == 0
    assert answers(outcome) == [("requeue", 7), ("requeue", 7), ("acknowledge", 0)]
    assert [event["attempt"] for event in outcome.json()[:-1]] == [1, 2, 3]
    ended = {"event": "ended", "acknowledge": 1, "requeue": 2, "dead_letter": 0, "returned": 0, "lost": 0}
    assert outcome.json()[-1] == ended


def test_the_retry_delay_is_kept_and_the_failure_is_told(run: Run, url: str, letters: Queue) -> None:
    letters.feed({"n": 1})
    outcome = run("work", letters.name, "--once", "--retry-delay", "3600", "--server", url, "--", "sh", "-c", "exit 3")
    assert outcome.code == 0
    assert outcome.errors.splitlines()[0].endswith(", attempt 1: exit code 3: to be delivered again")
    assert letters.waiting() == (0, 1, 0, 0)


def test_a_chosen_exit_code_is_for_the_dead_letters(run: Run, url: str, letters: Queue) -> None:
    letters.feed({"n": 1}, {"n": 2})
    options = ("--drain", "--dead-letter-exit-code", "65", "--json", "--server", url)
    outcome = run("work", letters.name, *options, "--", "sh", "-c", "grep -q 2 || exit 65")
    assert sorted(answers(outcome)) == [("acknowledge", 0), ("dead_letter", 65)]
    assert letters.waiting() == (0, 0, 0, 1)
    dead = run("work", f"{letters.name}.dead", "--once", "--server", url, "--", "cat")
    assert dead.output == b'{"n":1}'
    assert letters.waiting() == (0, 0, 0, 0)


def test_as_many_commands_run_as_there_is_credit(
    run: Run, start: Start, url: str, letters: Queue, tmp_path: Path
) -> None:
    letters.feed(*({"n": number} for number in range(5)))
    script = "echo begun; " + UNTIL.format("go") + "; echo ended"
    process = start("work", letters.name, "--drain", "--credit", "3", "--server", url, "--", "sh", "-c", script)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(3)] == [b"begun\n"] * 3
    # No more than these, of which none has ended.
    assert letters.waiting() == (2, 0, 3, 0)
    (tmp_path / "go").touch()
    output, _ = process.communicate()
    assert sorted(output.splitlines()) == [b"begun"] * 2 + [b"ended"] * 5
    assert process.returncode == 0


@pytest.mark.parametrize("credit", ["1", "2", "4"])
def test_no_more_records_are_taken_than_asked_for(run: Run, url: str, letters: Queue, credit: str) -> None:
    letters.feed(*({"n": number} for number in range(6)))
    outcome = run(
        "work", letters.name, "--max-records", "4", "--credit", credit, "--json", "--server", url, "--", "true"
    )
    assert answers(outcome) == [("acknowledge", 0)] * 4
    assert outcome.json()[-1]["returned"] == 0
    assert letters.waiting() == (2, 0, 0, 0)
    assert [
        event["attempt"]
        for event in run("work", letters.name, "--drain", "--json", "--server", url, "--", "true").json()[:-1]
    ] == [1, 1]


def test_no_command_crashes_before_it_has_begun(run: Run, url: str, letters: Queue) -> None:
    # Beside gRPC, one of twenty does where processes are started by a fork that runs its handlers.
    letters.feed(*({"n": number} for number in range(100)))
    outcome = run("work", letters.name, "--drain", "--credit", "2", "--json", "--server", url, "--", "true")
    assert answers(outcome) == [("acknowledge", 0)] * 100


def test_a_lease_is_extended_while_its_command_runs(
    run: Run, start: Start, url: str, brief: Queue, tmp_path: Path
) -> None:
    brief.feed({"n": 1})
    script = "echo $TAILRACE_RECORD_ATTEMPT; " + UNTIL.format("go")
    process = start("work", brief.name, "--once", "--json", "--server", url, "--", "sh", "-c", script)
    assert process.stderr is not None
    assert process.stderr.readline() == b"1\n"
    # Another worker waits for more than twice the lease, and gets nothing.
    other = start("work", brief.name, "--once", "--server", url, "--", "cat")
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(5)
    (tmp_path / "go").touch()
    output, _ = process.communicate()
    assert json.loads(output.splitlines()[0])["verdict"] == "acknowledge"
    brief.feed({"n": 2})
    assert other.communicate()[0] == b'{"n":2}'


def test_a_killed_worker_loses_its_records_to_others(run: Run, start: Start, url: str, brief: Queue) -> None:
    brief.feed({"n": 1})
    process = start("work", brief.name, "--server", url, "--", "sh", "-c", "echo begun; exec sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.kill()
    process.wait()
    outcome = run("work", brief.name, "--once", "--server", url, "--", "sh", "-c", TELL)
    assert outcome.output == b'2 0 none {"n":1}\n'


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_commands_end_and_takes_nothing_more(
    run: Run, start: Start, url: str, letters: Queue, tmp_path: Path, number: signal.Signals
) -> None:
    letters.feed({"n": 1}, {"n": 2})
    script = "echo begun >&2; " + UNTIL.format("go")
    process = start("work", letters.name, "--json", "--server", url, "--", "sh", "-c", script)
    assert process.stderr is not None
    assert process.stderr.readline() == b"begun\n"
    process.send_signal(number)
    # It does not take the second one, whose turn would be when the credit was still there.
    (tmp_path / "go").touch()
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, b"")
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["verdict"] for event in events[:-1]] == ["acknowledge"]
    assert letters.waiting() == (1, 0, 0, 0)


def test_behind_the_grace_commands_are_ended_and_records_are_given_back(
    run: Run, start: Start, url: str, letters: Queue
) -> None:
    letters.feed({"n": 1})
    script = "trap 'echo told >&2; exit 0' TERM; echo begun >&2; while :; do sleep 0.02; done"
    process = start("work", letters.name, "--grace", "0", "--json", "--server", url, "--", "sh", "-c", script)
    assert process.stderr is not None
    assert process.stderr.readline() == b"begun\n"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 0
    # Some shells say, too, what became of the command that they had started.
    assert errors.splitlines()[-1] == b"told"
    (ended,) = [json.loads(line) for line in output.splitlines()]
    assert ended["acknowledge"] == 0
    # At once, not when its lease would have ended.
    assert letters.waiting() == (1, 0, 0, 0)


def test_a_second_signal_ends_commands_at_once(run: Run, start: Start, url: str, letters: Queue) -> None:
    letters.feed({"n": 1})
    process = start("work", letters.name, "--server", url, "--", "sh", "-c", "echo begun; exec sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 130
    assert letters.waiting() == (1, 0, 0, 0)


def test_a_command_that_ends_by_a_signal_has_failed(run: Run, url: str, letters: Queue) -> None:
    letters.feed({"n": 1})
    outcome = run(
        "work", letters.name, "--once", "--retry-delay", "0", "--json", "--server", url, "--", "sh", "-c", "kill -9 $$"
    )
    assert answers(outcome) == [("requeue", -9)]


def test_a_command_may_ignore_its_input(run: Run, url: str, letters: Queue) -> None:
    letters.feed({"text": "x" * 500_000}, {"text": "y" * 500_000})
    outcome = run("work", letters.name, "--drain", "--json", "--server", url, "--", "true")
    assert answers(outcome) == [("acknowledge", 0)] * 2


def test_an_unknown_queue_has_an_exit_code_of_its_own(run: Run, url: str) -> None:
    outcome = run("work", "nowhere", "--server", url, "--", "true")
    # Nothing is said of records: there was none, and could not be.
    assert (outcome.code, outcome.output, outcome.errors) == (3, b"", "tailrace: no queue 'nowhere'\n")


def test_a_server_that_goes_away_ends_the_work(start: Start, tmp_path: Path) -> None:
    with serving_records(tmp_path, '[serve]\nlog_level = "error"\n') as server:
        with tailrace.sync.connect(server.grpc) as client:
            Queue(client, "letters").feed({"n": 1})
        once = {"TAILRACE_CLIENT_RECONNECT_TIMEOUT": "0"}
        command = ("work", "letters", "--server", server.grpc, "--", "sh", "-c", "echo begun; exec sleep 1000")
        process = start(*command, **once)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        server.process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        assert process.returncode == 1
        assert errors.decode().splitlines()[-1].startswith("tailrace: the server is going away")
        assert server.process.wait() == 0


def test_figures_are_shown(run: Run, url: str, letters: Queue) -> None:
    letters.feed({"n": 1}, {"n": 2})
    outcome = run("queue", letters.name, "--server", url)
    assert (outcome.code, outcome.errors) == (0, "")
    figures = {"ready": 2, "delayed": 0, "in flight": 0, "dead": 0, "consumers": 0, "stalled": 0}
    rows = {"queue": letters.name, **figures}
    assert outcome.output.decode().splitlines() == [f"{name + ':':14}{value}" for name, value in rows.items()]
    (fields,) = run("queue", letters.name, "--server", url, "--json").json()
    assert fields == {name.replace(" ", "_"): value for name, value in rows.items()}
    unknown = run("queue", "nowhere", "--server", url)
    assert (unknown.code, unknown.errors) == (3, "tailrace: no queue 'nowhere'\n")


def test_exit_codes_are_described() -> None:
    assert describe_code(3) == "exit code 3"
    assert describe_code(-9) == "ended by SIGKILL"
    assert describe_code(-63) == "ended by signal 63"
