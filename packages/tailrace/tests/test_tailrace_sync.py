"""The blocking API against a real server: the same names, from many threads, beside other loops."""

import asyncio
import gc
import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import walk_stack
from types import FrameType

import pytest
from tailrace_processes import ENVIRONMENT, Server

import tailrace
from tailrace._portal import PORTAL
from tailrace_common_api import ConnectionLost, IntegrityError, NotFound, ResourceFailed, ResourceState, blocking
from tailrace_impl_common import head_of


@pytest.fixture(params=["grpc", "ws"])
def url(request: pytest.FixtureRequest, server: Server) -> str:
    found: str = server.urls[request.param]
    return found


@pytest.fixture
def client(url: str) -> Iterator[tailrace.sync.Client]:
    with tailrace.sync.connect(url) as client:
        yield client


def test_what_is_written_is_followed_and_read(client: tailrace.sync.Client) -> None:
    with client.upload("run.log", lines=True) as upload:
        resource = client.open(upload.reference)
        follower = resource.follow()
        for number in range(50):
            upload.write(b"line %d\n" % number)
        assert upload.flush().newlines == 50
        assert upload.announced.size == upload.offset
        received = b""
        while len(received) < upload.offset:
            received += next(follower)
        assert received == b"".join(b"line %d\n" % number for number in range(50))
        assert resource.read_lines(last=2) == [b"line 48\n", b"line 49\n"]
        assert list(resource.lines(10, 2)) == [b"line 10\n", b"line 11\n"]
        assert resource.read(0, 4) == b"line"
        assert resource.status().state is ResourceState.IN_PROGRESS
        statuses = resource.statuses()
        assert next(statuses).size == upload.offset
    assert list(follower) == []
    assert [status.state for status in statuses][-1] is ResourceState.COMPLETED
    resource.close()
    with pytest.raises(ConnectionLost):
        resource.read()
    assert upload.status.head == head_of(received)
    assert client.status(upload.id) == upload.status
    client.delete(upload.reference)
    with pytest.raises(NotFound):
        client.status(upload.reference)


def test_a_resource_is_a_file(client: tailrace.sync.Client) -> None:
    text = "".join(f"{number}: {os.urandom(20).hex()}\n" for number in range(50_000))
    packed = gzip.compress(text.encode(), 1)
    with client.upload("run.gz") as upload:
        upload.send_all([packed[:1000], packed[1000:]])
    with client.open(upload.reference).file() as file, gzip.open(file, "rt") as unpacked:
        assert unpacked.read() == text
    copy = io.BytesIO()
    with client.open(upload.reference).file() as file:
        shutil.copyfileobj(file, copy)
        assert copy.getvalue() == packed
        assert file.seek(-10, io.SEEK_END) == len(packed) - 10
        assert file.read(100) == packed[-10:]


def test_saving_continues_a_part_and_refuses_another_file(client: tailrace.sync.Client, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    with client.upload("data.bin") as upload:
        upload.write(data)
    path = tmp_path / "data.bin"
    path.write_bytes(data[:1_234_567])
    seen: list[int] = []
    with client.open(upload.reference) as resource:
        status = resource.save(path, progress=seen.append)
        assert path.read_bytes() == data
        assert status == upload.status
        assert (seen[0], seen[-1], sorted(seen)) == (1_234_567, 5_000_000, seen)
        path.write_bytes(b"other")
        with pytest.raises(IntegrityError, match=r"data\.bin"):
            resource.save(path)
        assert path.read_bytes() == b"other"
        with pytest.raises(IsADirectoryError):
            resource.save(tmp_path)


def test_leaving_with_an_exception_fails_the_resource(client: tailrace.sync.Client) -> None:
    def run() -> None:
        with client.upload("a") as upload:
            references.append(upload.reference)
            upload.write(b"kept")
            upload.flush()
            raise ValueError("no more")

    references: list[str] = []
    with pytest.raises(ValueError, match="no more"):
        run()
    resource = client.open(references[0])
    received: list[bytes] = []
    with pytest.raises(ResourceFailed, match="ValueError: no more"):
        received.extend(resource.follow())
    assert resource.read() == b"kept"
    assert b"".join(resource.follow(raise_on_failure=False)) == b"kept"


def test_many_threads_share_one_client(client: tailrace.sync.Client) -> None:
    def transfer(number: int) -> None:
        try:
            data = b"%d\n" % number * 5000
            with client.upload(f"t{number}", lines=True) as upload:
                for start in range(0, len(data), 100):
                    upload.write(data[start : start + 100])
            with client.open(upload.reference) as resource:
                assert b"".join(resource.follow()) == data
                assert resource.read_lines(last=1) == [b"%d\n" % number]
            done.append(number)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            done.append(error)

    done: list[object] = []
    threads = [threading.Thread(target=transfer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done, key=str) == list(range(8))


def test_clients_share_one_loop_that_ends_with_the_last(server: Server) -> None:
    # One of an earlier test may be about to end.
    before = set(threading.enumerate())
    assert PORTAL._users == 0
    first = tailrace.sync.connect(server.grpc)
    second = tailrace.sync.connect(server.ws)
    assert len(set(threading.enumerate()) - before) == 1
    first.close()
    first.close()
    with second.upload("a") as upload:
        upload.write(b"x")
    # A follower that nobody closed does not keep the loop.
    follower = second.open(upload.reference).chunks()
    next(follower)
    second.close()
    assert PORTAL._users == 0
    assert set(threading.enumerate()) <= before


def _stack(thread: int) -> Iterator[tuple[FrameType, int]]:
    return walk_stack(sys._current_frames()[thread])


Interrupt = Callable[[Callable[[], object]], None]


@pytest.fixture
def interrupted() -> Iterator[Interrupt]:
    """Interrupt this thread, as Ctrl-C does, while it waits in the façade for what it was told to do."""

    handled, over = threading.Event(), threading.Event()

    def raise_interrupt(number: int, frame: object) -> None:
        # The next one may have been on its way already.
        if not handled.is_set():
            handled.set()
            raise KeyboardInterrupt

    target = threading.get_ident()

    def interrupt_when_waiting() -> None:
        while not any(frame.f_code.co_filename == blocking.__file__ for frame, _ in _stack(target)):
            if over.is_set():
                return
            os.sched_yield()
        signal.pthread_kill(target, signal.SIGUSR1)
        # A signal between the interpreter's last look and the wait itself is only seen with the next one.
        while not (handled.wait(0.1) or over.is_set()):
            signal.pthread_kill(target, signal.SIGUSR1)

    def interrupt(action: Callable[[], object]) -> None:
        handled.clear()
        over.clear()
        thread = threading.Thread(target=interrupt_when_waiting)
        thread.start()
        try:
            action()
        finally:
            # Behind the test nobody would handle its signals.
            over.set()
            thread.join()

    before = signal.signal(signal.SIGUSR1, raise_interrupt)
    yield interrupt
    signal.signal(signal.SIGUSR1, before)


def test_an_interrupted_wait_leaves_the_client_usable(client: tailrace.sync.Client, interrupted: Interrupt) -> None:
    with client.upload("a", lines=True) as upload:
        upload.write(b"x\n")
        resource = client.open(upload.reference)
        statuses = resource.statuses()
        follower = resource.follow()
        assert next(follower) == b"x\n"
        with pytest.raises(KeyboardInterrupt):
            interrupted(lambda: next(follower))
        with pytest.raises(KeyboardInterrupt):
            interrupted(resource.wait)
        upload.write(b"y\n")
        assert next(follower) == b"y\n"
        assert next(statuses).size == 4
        follower.close()
    assert resource.wait().state is ResourceState.COMPLETED


def test_dropped_iterators_end(client: tailrace.sync.Client) -> None:
    with client.upload("a", lines=True) as upload:
        upload.write(b"x\n")
        upload.flush()
        resource = client.open(upload.reference)
        for _ in range(20):
            assert next(resource.follow()) == b"x\n"
            assert next(resource.lines()) == b"x\n"
        gc.collect()
        assert resource.read() == b"x\n"


async def test_it_works_beside_an_applications_own_loop(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Two loops of one process talk gRPC: gRPC shares its poller between them and must not complain."""

    def transfer(reference: str) -> bytes:
        with tailrace.sync.connect(server.grpc) as client, client.open(reference) as resource:
            return b"".join(resource.follow())

    async with tailrace.connect(server.grpc) as client:
        async with client.upload("a") as upload:
            followers = [asyncio.create_task(asyncio.to_thread(transfer, upload.reference)) for _ in range(4)]
            for number in range(200):
                await upload.write(b"%d\n" % number)
                if number % 20 == 0:
                    await upload.flush()
        expected = b"".join(b"%d\n" % number for number in range(200))
        assert await asyncio.gather(*followers) == [expected] * 4
    assert caplog.records == []


def test_a_forked_process_starts_anew(server: Server) -> None:
    script = f"""
import os, sys, tailrace, warnings
# From 3.12 on Python warns of forking beside threads, which is what this is about.
warnings.simplefilter("ignore", DeprecationWarning)
client = tailrace.sync.connect({server.ws!r})
with client.upload("parent") as upload:
    upload.write(b"x")
pid = os.fork()
if pid == 0:
    with tailrace.sync.connect({server.ws!r}) as own, own.upload("child") as upload:
        upload.write(b"y")
    try:
        client.upload("not here").open()
    except RuntimeError as error:
        refused = "forked" in str(error)
    client.close()
    os._exit(0 if upload.status.size == 1 and refused else 1)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
with client.upload("parent again") as upload:
    upload.write(b"z")
client.close()
print(upload.status.size)
"""
    outcome = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "1\n", "")


def test_a_script_may_end_without_closing(server: Server) -> None:
    script = f"""
import tailrace
client = tailrace.sync.connect({server.grpc!r})
upload = client.upload("left")
upload.open()
upload.write(b"x")
upload.flush()
follower = client.open(upload.reference).follow()
print(next(follower))
"""
    outcome = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "b'x'\n", "")
