"""The blocking façade says and does what the asynchronous interface does."""

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tailrace_client_upload_api import Buffer, ReopenRequest, UploadClient, UploadRequest, UploadSession, sync
from tailrace_common_api import (
    Checkpoint,
    InvalidArgument,
    Limits,
    Metadata,
    QuotaExceeded,
    ResourceState,
    Status,
    UploadAborted,
)

LIMITS = Limits(
    chunk_size=1,
    upload_window=1,
    upload_grace=1.0,
    max_download_window=1,
    max_resource_size=1,
    max_page_size=1,
    max_heads=1,
    max_context_bytes=1 << 40,
    max_context_resources=1000,
    max_storage_bytes=1 << 50,
    max_uploads=100,
    max_contexts=100,
    max_requests=100,
    context_required=False,
)


class MemorySession(UploadSession):
    """An upload into memory; ``hold`` stops it, ``error`` ends it."""

    def __init__(self, request: UploadRequest | ReopenRequest) -> None:
        self.request = request
        self.content = bytearray()
        self.pieces: list[bytes] = []
        self.state = ResourceState.INITIATED
        self.reason: str | None = None
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.held = threading.Event()
        self.threads: set[int] = set()

    reference = "memory://here/r/1"
    id = "1"
    token = "secret"
    epoch = 1
    limits = LIMITS

    @property
    def offset(self) -> int:
        return len(self.content)

    @property
    def announced(self) -> Checkpoint:
        return Checkpoint(len(self.content), 0, bytes(16))

    @property
    def status(self) -> Status:
        return Status(
            reference=self.reference,
            id=self.id,
            version=1,
            state=self.state,
            size=len(self.content),
            lines=None,
            head=bytes(16),
            reason=self.reason,
            alternatives=(),
            metadata=Metadata(name="memory"),
            visibility=self.request.visibility if isinstance(self.request, UploadRequest) else NotImplemented,
            created_at=0.0,
        )

    async def open(self) -> None:
        self.state = ResourceState.IN_PROGRESS

    async def write(self, data: Buffer) -> None:
        self.threads.add(threading.get_ident())
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        if self.state.terminal:
            raise UploadAborted(reason=self.reason or "the upload has ended")
        self.pieces.append(bytes(data))
        self.content += data

    async def flush(self) -> Checkpoint:
        return self.announced

    async def finish(self) -> Status:
        if self.error is not None:
            raise self.error
        self.state = ResourceState.COMPLETED
        return self.status

    async def abort(self, reason: str = "aborted by the client") -> Status | None:
        if not self.state.terminal:
            self.state, self.reason = ResourceState.FAILED, reason
            if self.hold is not None:
                self.hold.set()
        return self.status

    async def checkpoints(self) -> AsyncGenerator[Checkpoint, None]:
        yield Checkpoint(1, 0, bytes(16))
        yield Checkpoint(2, 0, bytes(16))

    async def detach(self) -> None:
        self.state = ResourceState.IN_PROGRESS


class MemoryClient(UploadClient):
    def __init__(self) -> None:
        self.sessions: list[MemorySession] = []

    def start_upload(self, request: UploadRequest) -> MemorySession:
        self.sessions.append(MemorySession(request))
        return self.sessions[-1]

    def resume_upload(self, request: ReopenRequest) -> MemorySession:
        self.sessions.append(MemorySession(request))
        return self.sessions[-1]


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def behind() -> MemoryClient:
    return MemoryClient()


@pytest.fixture
def client(portal: BlockingPortal, behind: MemoryClient) -> sync.UploadClient:
    return sync.UploadClient(portal, behind)


def names(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["UploadClient", "UploadSession"])
def test_names_and_arguments_are_those_of_the_asynchronous_interface(name: str) -> None:
    asynchronous = {"UploadClient": UploadClient, "UploadSession": UploadSession}[name]
    blocking = getattr(sync, name)
    assert names(asynchronous) == names(blocking)
    for method in names(asynchronous):
        if inspect.isfunction(getattr(asynchronous, method)):
            expected = inspect.signature(getattr(asynchronous, method)).parameters
            actual = inspect.signature(getattr(blocking, method)).parameters
            assert [(p.name, p.kind, p.default) for p in actual.values()] == [
                (p.name, p.kind, p.default) for p in expected.values()
            ]


def test_leaving_the_block_completes_the_upload(client: sync.UploadClient, behind: MemoryClient) -> None:
    with client.upload("a", content_type="text/plain", lines=True, labels={"k": "v"}) as upload:
        upload.write(b"one")
        upload.write(bytearray(b"two"))
        assert upload.send_all([b"three", memoryview(b"four")]) == 9
    (session,) = behind.sessions
    assert upload.status.state is ResourceState.COMPLETED
    assert session.content == b"onetwothreefour"
    assert isinstance(session.request, UploadRequest)
    assert session.request.metadata == Metadata(name="a", content_type="text/plain", lines=True, labels={"k": "v"})
    assert (upload.reference, upload.id, upload.token, upload.epoch) == ("memory://here/r/1", "1", "secret", 1)
    assert upload.limits is LIMITS


def test_everything_runs_in_the_thread_of_the_loop(
    client: sync.UploadClient, behind: MemoryClient, portal: BlockingPortal
) -> None:
    with client.upload("a") as upload:
        upload.write(b"small")
        upload.write(bytes(100_000))
    assert behind.sessions[0].threads == {portal.call(threading.get_ident)}


def test_small_and_large_writes_keep_their_order(client: sync.UploadClient, behind: MemoryClient) -> None:
    expected = bytearray()
    with client.upload("a") as upload:
        for number in range(300):
            data = bytes([number % 251]) * (70_000 if number % 10 == 0 else number)
            expected += data
            upload.write(data)
            assert upload.offset == len(expected)
    assert behind.sessions[0].content == expected


def test_small_writes_are_gathered_while_the_loop_is_busy(
    client: sync.UploadClient, behind: MemoryClient, portal: BlockingPortal
) -> None:
    with client.upload("a") as upload:
        session = behind.sessions[0]
        session.hold = asyncio.Event()
        upload.write(b"first")
        session.held.wait()
        changed = bytearray(b"x")
        for _ in range(1000):
            upload.write(changed)
        changed[0] = 0
        portal.call(session.hold.set)
        assert upload.flush().size == 1005
        assert [len(piece) for piece in session.pieces] == [5, 1000]
        assert session.content == b"first" + b"x" * 1000


def test_a_writer_waits_when_too_much_is_gathered(
    client: sync.UploadClient, behind: MemoryClient, portal: BlockingPortal
) -> None:
    with client.upload("a") as upload:
        session = behind.sessions[0]
        session.hold = asyncio.Event()
        written = 0

        def release_when_full() -> None:
            session.held.wait()
            while not upload._gatherer._waiting:
                threading.Event().wait(0)
            assert written <= 300_000
            assert session.hold is not None
            portal.call(session.hold.set)

        releaser = threading.Thread(target=release_when_full)
        releaser.start()
        for _ in range(2000):
            upload.write(bytes(1000))
            written += 1000
        releaser.join()
    assert len(session.content) == 2_000_000


@pytest.mark.parametrize("size", [10, 100_000])
def test_the_error_that_ends_an_upload_is_raised_and_the_upload_aborted(
    client: sync.UploadClient, behind: MemoryClient, size: int
) -> None:
    refused = QuotaExceeded(limit="bytes", maximum=1, actual=2)

    def run() -> None:
        with client.upload("a") as upload:
            behind.sessions[0].error = refused
            upload.write(bytes(size))

    with pytest.raises(QuotaExceeded) as caught:
        run()
    assert caught.value is refused
    assert behind.sessions[0].state is ResourceState.FAILED


@pytest.mark.parametrize(
    ("error", "reason"), [(KeyboardInterrupt(), "cancelled"), (ValueError("no more"), "ValueError: no more")]
)
def test_leaving_with_an_exception_aborts_with_its_reason(
    client: sync.UploadClient, behind: MemoryClient, error: BaseException, reason: str
) -> None:
    def run() -> None:
        with client.upload("a") as upload:
            upload.write(b"data")
            upload.flush()
            raise error

    with pytest.raises(type(error)):
        run()
    session = behind.sessions[0]
    assert (session.state, session.reason) == (ResourceState.FAILED, reason)
    assert session.content == b"data"


@pytest.mark.parametrize("told", [False, True], ids=["before the loop was told", "behind"])
def test_a_first_small_write_that_is_interrupted_can_be_repeated(
    portal: BlockingPortal, behind: MemoryClient, told: bool
) -> None:
    class Interrupted:
        armed = False

        def start_task_soon(self, func: Callable[..., Any], *args: Any) -> Future[Any]:
            if not self.armed:
                return portal.start_task_soon(func, *args)
            self.armed = False
            if told:
                portal.start_task_soon(func, *args)
            raise KeyboardInterrupt

    interrupted = Interrupted()
    with sync.UploadClient(interrupted, behind).upload("a") as upload:
        interrupted.armed = True
        with pytest.raises(KeyboardInterrupt):
            upload.write(b"interrupted")
        assert upload.offset == 0
        upload.flush()
        upload.write(b"data")
        upload.flush()
        upload.write(b" and more")
    assert behind.sessions[0].content == b"data and more"


def test_abort_drops_what_is_gathered_and_later_writes_are_refused(
    client: sync.UploadClient, behind: MemoryClient
) -> None:
    upload = client.upload("a")
    upload.open()
    session = behind.sessions[0]
    session.hold = asyncio.Event()
    upload.write(b"held")
    session.held.wait()
    upload.write(b"gathered")
    status = upload.abort("enough")
    assert status is not None
    assert status.reason == "enough"
    with pytest.raises(UploadAborted, match="enough"):
        upload.write(b"late")
    assert session.content == b""


def test_detached_and_resumed_uploads_and_checkpoints(client: sync.UploadClient, behind: MemoryClient) -> None:
    upload = client.resume_upload(ReopenRequest(id="1", token="secret"))
    upload.open()
    upload.write(b"kept")
    assert [checkpoint.size for checkpoint in upload.checkpoints()] == [1, 2]
    upload.detach()
    assert behind.sessions[0].content == b"kept"
    assert upload.announced.size == 4


def test_bad_metadata_is_refused_where_it_is_built(client: sync.UploadClient) -> None:
    with pytest.raises(InvalidArgument):
        client.upload("")


def test_many_threads_upload_over_one_client(client: sync.UploadClient, behind: MemoryClient) -> None:
    def upload(name: str) -> None:
        with client.upload(name) as session:
            for number in range(200):
                session.write(f"{name} {number}\n".encode())

    threads = [threading.Thread(target=upload, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contents = {bytes(session.content) for session in behind.sessions}
    assert contents == {"".join(f"t{n} {i}\n" for i in range(200)).encode() for n in range(8)}
