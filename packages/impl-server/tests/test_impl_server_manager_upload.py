import asyncio
import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from impl_server_manager_bench import (
    LINES,
    MIB,
    Bench,
    Uploader,
    ended,
    follow,
    last_status,
    read_all,
    reading,
    refusal,
    turned,
    upload,
)

from tailrace_common_api import (
    AlreadyTerminal,
    DigestMismatch,
    IntegrityError,
    InvalidArgument,
    LengthMismatch,
    Metadata,
    NotFound,
    ProtocolError,
    QuotaExceeded,
    ResourceState,
    StorageFull,
    Visibility,
)
from tailrace_impl_common import chunk_hash, head_of
from tailrace_impl_server import _ingest
from tailrace_impl_server._digest import ContentDigest
from tailrace_impl_server._ingest import UploadSession
from tailrace_server_api import Progress

BINARY = Metadata(name="data.bin")


async def test_is_readable_from_creation_on_and_complete_at_the_end(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    async with reading(manager, uploader.id) as reader:
        assert reader.snapshot.state is ResourceState.INITIATED
        assert reader.snapshot.size == 0
        following = asyncio.create_task(follow(reader, until=ended))
        data = b"".join(b"line %d\n" % number for number in range(200_000)) + b"unterminated"
        await uploader.send(data, chunk_size=100_000)
        status = await uploader.finish()
        assert await following == data
    assert status.state is ResourceState.COMPLETED
    assert status.size == len(data)
    assert status.lines == 200_001
    assert status.head == head_of(data)
    assert status.reason is None


async def test_completed_resources_outlive_the_server(disk_bench: Bench) -> None:
    manager = await disk_bench.start()
    status = await upload(manager, b"one\ntwo\n")
    manager = await disk_bench.restart()
    async with reading(manager, status.id) as reader:
        assert reader.status() == status
    assert await read_all(manager, status.id) == b"one\ntwo\n"


async def test_a_session_that_has_ended_is_released_without_a_pause(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"all\n")
    await uploader.finish()
    releasing = uploader.ingest.release()
    # A pause would be time for the client, which has its result, to leave: its upload would count as cancelled.
    with pytest.raises(StopIteration):
        releasing.send(None)


async def test_nothing_at_all_completes(bench: Bench) -> None:
    manager = await bench.start()
    status = await upload(manager, b"")
    assert (status.state, status.size, status.lines, status.head) == (ResourceState.COMPLETED, 0, 0, head_of(b""))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(min_size=1, max_size=400_000) | st.binary(min_size=1, max_size=5), max_size=12))
async def test_any_chunking_gives_the_same_resource(memory_bench: Bench, pieces: list[bytes]) -> None:
    manager = await memory_bench.start()
    uploader = Uploader(await manager.create(LINES))
    async with reading(manager, uploader.id) as reader:
        following = asyncio.create_task(follow(reader, until=ended, piece=70_000))
        for piece in pieces:
            await uploader.send(piece, chunk_size=300_000)
        status = await uploader.finish()
        data = b"".join(pieces)
        assert await following == data
    assert status.head == head_of(data)
    assert status.lines == data.count(b"\n") + (data[-1:] not in (b"", b"\n"))
    await memory_bench.close()


async def test_the_last_bytes_of_a_burst_show_without_further_writes(bench: Bench) -> None:
    manager = await bench.start(checkpoint_interval=0.02)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"0\n")
    await uploader.announced()
    for number in range(1, 5):
        await uploader.send(b"%d\n" % number)
    # Within the interval, and nothing more is sent: only the trailing edge can announce them.
    await uploader.announced()
    assert await read_all(manager, uploader.id) == b"0\n1\n2\n3\n4\n"
    await uploader.ingest.release()


async def test_the_first_bytes_show_at_once_whatever_the_interval(bench: Bench) -> None:
    manager = await bench.start(checkpoint_interval=3600.0)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"first\n")
    await uploader.announced()
    await uploader.send(b"second\n")
    await uploader.ingest.release()
    assert await read_all(manager, uploader.id) == b"first\nsecond\n"


async def test_what_arrives_during_an_announcement_is_coalesced_into_the_next(bench: Bench) -> None:
    manager = await bench.start()
    bench.gates.shut("checkpoint")
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"first\n")
    await bench.gates.arrival("checkpoint")
    for number in range(50):
        await uploader.send(b"%d\n" % number)
    bench.gates.open("checkpoint")
    await uploader.announced()
    assert bench.gates.calls["checkpoint"] == 2


async def test_much_that_arrives_at_once_is_announced_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ingest, "_PACE", 3600.0)
    monkeypatch.setattr(_ingest, "_LULL", 3600.0)
    manager = await bench.start(upload_window=MIB)
    session = await manager.create(BINARY)
    assert isinstance(session, UploadSession)
    uploader = Uploader(session)
    await uploader.send(bytes(100_000))
    await uploader.announced()
    for _ in range(10):
        await uploader.send(bytes(100_000))
        await turned(lambda: session._writer.stored == uploader.size)
    assert uploader.ingest.progress.checkpoint.size == 100_000
    # A window is enough for an announcement of its own.
    await uploader.send(bytes(100_000))
    await uploader.announced()
    # So is little: nothing else is waited for that would cost as much.
    await uploader.send(b"x")
    await uploader.announced()
    await uploader.ingest.release()


async def test_much_is_announced_once_no_more_arrives(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ingest, "_PACE", 3600.0)
    manager = await bench.start(upload_window=MIB)
    uploader = Uploader(await manager.create(BINARY))
    for _ in range(3):
        await uploader.send(bytes(100_000))
        await uploader.announced()
    await uploader.ingest.release()


async def test_the_window_is_renewed_by_halves_while_more_arrives_and_by_quarters_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ingest, "_LULL", 3600.0)
    manager = await bench.start(checkpoint_interval=3600.0, upload_window=MIB)
    session = await manager.create(BINARY)
    assert isinstance(session, UploadSession)
    uploader = Uploader(session)
    await uploader.send(b"x")
    await uploader.announced()
    await uploader.send(bytes(300_000))
    await turned(lambda: session._writer.stored == uploader.size)
    assert session.progress.until == MIB, "more is about to arrive"
    await uploader.send(bytes(300_000))
    while session.progress.until < uploader.size + MIB // 2:
        await session.changed(session.progress)
    monkeypatch.setattr(_ingest, "_LULL", 0.001)
    await uploader.send(bytes(300_000))
    while session.progress.until < uploader.size + MIB * 3 // 4:
        await session.changed(session.progress)
    assert session.progress.checkpoint.size == 1
    await uploader.ingest.release()


async def test_the_window_is_renewed_without_announcements(bench: Bench) -> None:
    window = 256 * 1024
    manager = await bench.start(checkpoint_interval=3600.0, upload_window=window)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"x")
    await uploader.announced()
    progress = uploader.ingest.progress
    assert progress == Progress(window, progress.checkpoint), "a byte is not worth telling"
    await uploader.send(bytes(window // 2), chunk_size=window // 16)
    while uploader.ingest.progress.until < uploader.size + window * 3 // 4:
        await uploader.ingest.changed(uploader.ingest.progress)
    assert uploader.ingest.progress.checkpoint.size == 1


async def test_what_a_thread_stores_unasked_renews_the_window_too(memory_bench: Bench) -> None:
    window = 256 * 1024
    manager = await memory_bench.start(checkpoint_interval=3600.0, upload_window=window)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"x")
    await uploader.announced()
    progress = uploader.ingest.progress
    memory_bench.gates.stored_shown = 1
    await uploader.send(bytes(window // 2))
    assert uploader.ingest.progress == progress
    # All of it is stored before the session looks again; no flush is needed, and nothing else would renew the window.
    memory_bench.gates.stored_shown = None
    renewed = await uploader.ingest.changed(progress)
    assert renewed.until == uploader.size + window
    assert memory_bench.gates.calls["flush"] == 0
    await uploader.ingest.release()


@pytest.mark.parametrize("interval", [0.0, 3600.0])
@pytest.mark.parametrize("pieces", [(20_000,), (60_000,), (20_000, 20_000)])
async def test_an_uploader_that_cuts_no_chunk_gets_room_for_one(
    bench: Bench, pieces: tuple[int, ...], interval: float
) -> None:
    chunk, window = 240 * 1024, 256 * 1024
    manager = await bench.start(checkpoint_interval=interval, chunk_size=chunk, upload_window=window)
    uploader = Uploader(await manager.create(BINARY))
    # No piece is a quarter of the window, and what each leaves of it is not enough for a chunk.
    for size in (*pieces, chunk, chunk, chunk):
        await uploader.send(bytes(size), chunk_size=chunk)
        while uploader.ingest.progress.until < uploader.size + chunk:
            await uploader.ingest.changed(uploader.ingest.progress)
    assert (await uploader.finish()).size == sum(pieces) + 3 * chunk


async def test_room_that_there_is_not_is_looked_for_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    real = UploadSession._make_room

    async def make_room(self: UploadSession) -> None:
        nonlocal looked
        looked += 1
        await real(self)

    monkeypatch.setattr(UploadSession, "_make_room", make_room)
    chunk, window = 240 * 1024, 256 * 1024
    manager = await bench.start(chunk_size=chunk, upload_window=window, max_resource_size=window)
    uploader = Uploader(await manager.create(BINARY))
    for number in (1, 2):
        await uploader.send(bytes(20_000))
        await turned(lambda number=number: looked >= number)  # type: ignore[misc]  # the number of this turn
        for _ in range(100):
            await asyncio.sleep(0)
        assert looked == number
    await uploader.ingest.release()


async def test_a_window_of_unannounced_bytes_is_announced_whatever_the_interval(bench: Bench) -> None:
    window = 64 * 1024
    manager = await bench.start(checkpoint_interval=3600.0, upload_window=window)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(bytes(10 * window + 1), chunk_size=window // 4)
    await uploader.announced(9 * window)
    assert uploader.size - uploader.ingest.progress.checkpoint.size <= window


async def test_many_uploads_share_the_total_of_windows(memory_bench: Bench) -> None:
    manager = await memory_bench.start(upload_windows_total=8 * MIB)
    ingests = [await manager.create(BINARY) for _ in range(16)]
    assert [ingest.progress.until for ingest in ingests[:3]] == [4 * MIB, 4 * MIB, 8 * MIB // 3]
    assert ingests[-1].progress.until == MIB // 2


async def test_a_bad_chunk_is_neither_stored_nor_shown_and_those_before_it_are(bench: Bench) -> None:
    manager = await bench.start()
    ingest = await manager.create(LINES)
    ingest.submit(b"good\n", hash=chunk_hash(b"good\n"))
    ingest.submit(b"bad\n", hash=chunk_hash(b"BAD\n"))
    ingest.submit(b"behind\n", hash=chunk_hash(b"behind\n"))
    error = await refusal(ingest)
    assert isinstance(error, IntegrityError)
    assert error.offset == 5
    await ingest.release()
    with pytest.raises(IntegrityError):
        ingest.submit(b"more\n", hash=chunk_hash(b"more\n"))
    async with reading(manager, ingest.id) as reader:
        assert reader.snapshot.state is ResourceState.IN_PROGRESS
        assert reader.snapshot.size == 5
        again = Uploader(await manager.reopen(ingest.id, ingest.token), sent=b"good\n")
        await again.send(b"BAD\n")
        assert (await again.finish()).state is ResourceState.COMPLETED
        assert await follow(reader, until=ended) == b"good\nBAD\n"


async def test_memory_does_not_keep_what_was_never_announced(bench: Bench) -> None:
    manager = await bench.start()
    ingest = await manager.create(LINES)
    async with reading(manager, ingest.id):
        ingest.submit(b"good\n", hash=chunk_hash(b"good\n"))
        ingest.submit(bytes(100_000), hash=bytes(8))
        assert isinstance(await refusal(ingest), IntegrityError)
        await ingest.release()
        assert 5 <= manager._registry.tails.used < 1_000


async def test_an_overdrawn_window_is_refused(bench: Bench) -> None:
    manager = await bench.start(upload_window=64 * 1024)
    ingest = await manager.create(BINARY)
    with pytest.raises(ProtocolError):
        ingest.submit(bytes(64 * 1024 + 1), hash=bytes(8))
    await ingest.release()


async def test_a_different_size_leaves_the_upload_resumable(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"arrived")
    with pytest.raises(IntegrityError) as raised:
        await uploader.ingest.finish(size=8, head=head_of(b"arrived!"))
    assert raised.value.offset == 7
    await uploader.ingest.release()
    again = Uploader(await manager.reopen(uploader.id, uploader.ingest.token), sent=b"arrived")
    await again.send(b"!")
    assert (await again.finish()).size == 8


async def test_a_different_head_fails_the_resource(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"stored")
    with pytest.raises(IntegrityError):
        await uploader.ingest.finish(size=6, head=head_of(b"STORED"))
    status = await last_status(manager, uploader.id)
    assert status.state is ResourceState.FAILED
    assert status.reason is not None
    assert "head" in status.reason


async def test_an_exceeded_length_fails_at_the_chunk_that_exceeds_it(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES, length=4))
    await uploader.send(b"1234")
    await uploader.announced()
    with pytest.raises(LengthMismatch) as raised:
        uploader.ingest.submit(b"5", hash=chunk_hash(b"5"))
    assert (raised.value.declared, raised.value.actual) == (4, 5)
    await uploader.ingest.release()
    status = await last_status(manager, uploader.id)
    assert (status.state, status.size) == (ResourceState.FAILED, 4)


async def test_a_missed_length_fails_at_the_end(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES, length=4))
    await uploader.send(b"123")
    with pytest.raises(LengthMismatch):
        await uploader.finish()
    assert (await last_status(manager, uploader.id)).state is ResourceState.FAILED


@pytest.mark.parametrize("size", [0, 100, 3 * MIB + 5])
async def test_a_declared_sha256_is_checked(bench: Bench, size: int) -> None:
    manager = await bench.start()
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    uploader = Uploader(await manager.create(BINARY, sha256=hashlib.sha256(data).digest()))
    await uploader.send(data)
    assert (await uploader.finish()).state is ResourceState.COMPLETED

    wrong = Uploader(await manager.create(BINARY, sha256=hashlib.sha256(b"other").digest()))
    await wrong.send(data)
    with pytest.raises(DigestMismatch) as raised:
        await wrong.finish()
    assert raised.value.actual == hashlib.sha256(data).hexdigest()
    assert (await last_status(manager, wrong.id)).state is ResourceState.FAILED


class _Hash:
    """Takes note of the order in which pieces are hashed; the first takes until it is allowed to end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.hashed: list[int] = []

    def update(self, data: bytes) -> None:
        if not self.begun.is_set():
            self.begun.set()
            self.may_end.wait()
        self.hashed.append(data[0])

    def digest(self) -> bytes:
        return bytes(self.hashed)


async def test_pieces_are_hashed_in_order_when_the_end_comes_in_the_middle_of_one(memory_bench: Bench) -> None:
    manager = await memory_bench.start()
    uploader = Uploader(await manager.create(BINARY))
    await uploader.send(b"\1" * MIB + b"\2" * MIB + b"\3" * 100)
    await uploader.announced()
    live = manager._registry.peek(uploader.id)
    assert live is not None
    slow = _Hash()
    digest = ContentDigest(live)
    digest._hash = slow  # type: ignore[assignment] # Stands for hashlib's.
    await asyncio.to_thread(slow.begun.wait)
    result = asyncio.create_task(digest.result())
    # However often the loop turns, nothing overtakes the piece that a thread is at.
    for _ in range(10):
        await asyncio.sleep(0)
    await asyncio.to_thread(slow.may_end.set)
    assert await result == b"\1\2\3"
    await uploader.ingest.release()


async def test_for_a_declared_sha256_nothing_is_read_that_was_just_sent(bench: Bench) -> None:
    manager = await bench.start()
    bench.storage.cached = False
    data = bytes(300_000)
    uploader = Uploader(await manager.create(BINARY, sha256=hashlib.sha256(data).digest()))
    for start in range(0, len(data), 100_000):
        await uploader.send(data[start : start + 100_000])
        await uploader.announced()
    assert (await uploader.finish()).state is ResourceState.COMPLETED
    assert bench.gates.calls["read"] == 0


async def test_a_declared_sha256_covers_what_earlier_sessions_sent(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(BINARY, sha256=hashlib.sha256(b"first, second").digest()))
    await uploader.send(b"first, ")
    await uploader.ingest.release()
    again = Uploader(await manager.reopen(uploader.id, uploader.ingest.token), sent=b"first, ")
    await again.send(b"second")
    assert (await again.finish()).state is ResourceState.COMPLETED


async def test_the_largest_size_is_a_quota_that_shows_while_uploading(bench: Bench) -> None:
    manager = await bench.start(max_resource_size=10)
    with pytest.raises(QuotaExceeded):
        await manager.create(BINARY, length=11)
    uploader = Uploader(await manager.create(BINARY))
    # One byte more is granted than is taken, so that an uploader with too much hears of it.
    assert uploader.ingest.progress.until == 11
    await uploader.send(b"0123456789")
    with pytest.raises(QuotaExceeded) as raised:
        uploader.ingest.submit(b"x", hash=chunk_hash(b"x"))
    assert (raised.value.maximum, raised.value.actual) == (10, 11)
    # Nothing of it was stored; what fits still completes.
    assert (await uploader.finish()).size == 10


async def test_a_full_storage_shows_at_once_and_leaves_the_upload_resumable(memory_bench: Bench) -> None:
    manager = await memory_bench.start(memory_bytes=100)
    uploader = Uploader(await manager.create(BINARY))
    await uploader.send(b"x" * 60)
    await uploader.announced()
    uploader.ingest.submit(b"y" * 60, hash=chunk_hash(b"y" * 60))
    with pytest.raises(StorageFull):
        await uploader.ingest.changed(uploader.ingest.progress)
    await uploader.ingest.release()
    again = Uploader(await manager.reopen(uploader.id, uploader.ingest.token), sent=b"x" * 60)
    assert (await again.finish()).size == 60


async def test_an_abort_keeps_what_was_announced_and_gives_the_reason(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"kept\n")
    await uploader.announced()
    status = await uploader.ingest.abort("the compiler crashed")
    assert status is not None
    assert (status.state, status.reason) == (ResourceState.FAILED, "the compiler crashed")
    await uploader.ingest.release()
    assert await last_status(manager, uploader.id) == status
    assert await read_all(manager, uploader.id) == b"kept\n"
    ingest = await manager.reopen(uploader.id, uploader.ingest.token)
    assert ingest.snapshot.state is ResourceState.FAILED
    with pytest.raises(AlreadyTerminal):
        ingest.submit(b"late", hash=chunk_hash(b"late"))


async def test_an_abort_behind_a_bad_chunk_still_fails_the_resource(bench: Bench) -> None:
    manager = await bench.start()
    ingest = await manager.create(LINES)
    ingest.submit(b"good\n", hash=chunk_hash(b"good\n"))
    ingest.submit(b"bad\n", hash=bytes(8))
    status = await ingest.abort("gave up")
    assert status is not None
    assert (status.state, status.reason) == (ResourceState.FAILED, "gave up")


async def test_an_aborted_atomic_upload_leaves_nothing(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES, visibility=Visibility.ATOMIC))
    await uploader.send(b"secret\n")
    assert await uploader.ingest.abort("no") is None
    await uploader.ingest.release()
    with pytest.raises(NotFound):
        await manager.open_reader(uploader.id, token=uploader.ingest.token)
    with pytest.raises(NotFound):
        await manager.reopen(uploader.id, uploader.ingest.token)
    assert [stored async for stored in bench.storage.ids()] == []
    assert await bench.catalog.known() == frozenset()


async def test_an_atomic_upload_with_a_different_head_leaves_nothing(bench: Bench) -> None:
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES, visibility=Visibility.ATOMIC))
    await uploader.send(b"stored")
    with pytest.raises(IntegrityError):
        await uploader.ingest.finish(size=6, head=head_of(b"STORED"))
    with pytest.raises(NotFound):
        await manager.open_reader(uploader.id, token=uploader.ingest.token)
    assert [stored async for stored in bench.storage.ids()] == []


async def test_a_finish_goes_on_when_its_caller_is_cancelled(bench: Bench) -> None:
    manager = await bench.start(upload_grace=0.0)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"all of it\n")
    bench.gates.shut("complete")
    finishing = asyncio.create_task(uploader.finish())
    await bench.gates.arrival("complete")
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    releasing = asyncio.create_task(uploader.ingest.release())
    bench.gates.open("complete")
    await releasing
    assert (await last_status(manager, uploader.id)).state is ResourceState.COMPLETED


async def test_a_connection_lost_behind_the_acknowledgement_changes_nothing(disk_bench: Bench) -> None:
    manager = await disk_bench.start(upload_grace=0.0)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"all of it\n")
    status = await uploader.finish()
    await uploader.ingest.release()
    await uploader.ingest.release()
    assert await last_status(manager, uploader.id) == status
    with pytest.raises(ProtocolError):
        await uploader.ingest.abort("too late")
    manager = await disk_bench.restart(upload_grace=0.0)
    assert await last_status(manager, uploader.id) == status


async def test_the_status_is_completed_only_when_the_catalog_knows(bench: Bench) -> None:
    manager = await bench.start()
    status = await upload(manager, b"x")
    entry = await bench.catalog.get(status.id)
    assert entry is not None
    assert entry.state is ResourceState.COMPLETED


async def test_releasing_announces_what_has_arrived(bench: Bench) -> None:
    manager = await bench.start(checkpoint_interval=3600.0)
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"first\n")
    await uploader.announced()
    await uploader.send(b"second\n")
    await uploader.ingest.release()
    await uploader.ingest.release()
    async with reading(manager, uploader.id) as reader:
        assert reader.snapshot.state is ResourceState.IN_PROGRESS
        assert reader.snapshot.size == 13
    assert bench.gates.calls["close"] == 1


async def test_a_cancelled_creation_leaves_no_session_behind(bench: Bench) -> None:
    manager = await bench.start(upload_grace=0.0)
    bench.gates.shut("open")
    creating = asyncio.create_task(manager.create(LINES))
    await bench.gates.arrival("open")
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    bench.gates.open("open")
    (resource_id,) = await bench.catalog.known()
    status = await last_status(manager, resource_id)
    assert (status.state, status.reason) == (ResourceState.FAILED, "uploader lost")
    await turned(lambda: len(manager._registry) == 0)


@pytest.mark.parametrize(
    "declared",
    [{"length": -1}, {"sha256": b"short"}, {"idempotency_key": ""}, {"idempotency_key": "a\nb"}],
)
async def test_bad_declarations_are_refused(memory_bench: Bench, declared: dict[str, object]) -> None:
    manager = await memory_bench.start()
    with pytest.raises(InvalidArgument):
        await manager.create(LINES, **declared)  # type: ignore[arg-type] # Any of several arguments.
    assert await memory_bench.catalog.known() == frozenset()


async def test_a_failed_catalog_leaves_nothing_of_a_creation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = await bench.start()

    async def insert(entry: object) -> str | None:
        raise StorageFull("no room for the catalog")

    monkeypatch.setattr(bench.catalog, "insert", insert)
    with pytest.raises(StorageFull):
        await manager.create(LINES)
    assert [stored async for stored in bench.storage.ids()] == []


async def test_nothing_is_left_on_disk_of_an_atomic_abort(disk_bench: Bench, tmp_path: Path) -> None:
    manager = await disk_bench.start()
    uploader = Uploader(await manager.create(BINARY, visibility=Visibility.ATOMIC))
    await uploader.send(b"secret")
    await uploader.announced()
    await uploader.ingest.abort("no")
    assert not [path for path in tmp_path.rglob("*") if uploader.id in path.name]


async def test_a_small_share_of_the_windows_is_not_throttled_by_a_long_interval(bench: Bench) -> None:
    manager = await bench.start(checkpoint_interval=1000.0, upload_windows_total=4096)
    data = bytes(MIB)
    async with asyncio.timeout(50):
        status = await upload(manager, data, chunk_size=4096)
    assert status.size == len(data)
