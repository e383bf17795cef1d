"""The machines against each other, without any transport."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import (
    Checkpoint,
    IntegrityError,
    InvalidArgument,
    Limits,
    MessageTooLarge,
    Metadata,
    ProtocolError,
    ResourceState,
    Status,
    Visibility,
    WrongOffset,
)
from tailrace_impl_common import (
    DOWNLOAD_TRANSITIONS,
    EMPTY_HEAD,
    UPLOAD_TRANSITIONS,
    DownloadReceiver,
    DownloadSender,
    DownloadState,
    HeadHasher,
    UploadReceiver,
    UploadSender,
    UploadState,
    chunk_hash,
    head_of,
)
from tailrace_impl_common.messages import Abort, Chunk, Finish, Finished, Opened, Started, Window

LIMITS = Limits(
    chunk_size=64,
    upload_window=256,
    upload_grace=60.0,
    max_download_window=1 << 20,
    max_resource_size=1 << 40,
    max_page_size=100,
    max_heads=10,
    max_context_bytes=1 << 40,
    max_context_resources=1000,
    max_storage_bytes=1 << 50,
    max_uploads=100,
    max_contexts=100,
    max_requests=100,
    context_required=False,
)


def make_status(state: ResourceState = ResourceState.INITIATED, size: int = 0, head: bytes = EMPTY_HEAD) -> Status:
    return Status(
        reference="inprocess://local/r/" + "0" * 32,
        id="0" * 32,
        version=1,
        state=state,
        size=size,
        lines=None,
        head=head,
        reason=None,
        alternatives=(),
        metadata=Metadata(name="x"),
        visibility=Visibility.LIVE,
        created_at=0.0,
    )


def make_opened(*, offset: int = 0, until: int = 256, head: bytes = EMPTY_HEAD) -> Opened:
    return Opened(
        status=make_status(), token="t", epoch=1, offset=offset, newlines=0, head=head, until=until, limits=LIMITS
    )


def open_pair(opened: Opened | None = None) -> tuple[UploadSender, UploadReceiver]:
    sender, receiver = UploadSender(1 << 20), UploadReceiver(LIMITS)
    opened = opened or make_opened()
    receiver.open(opened)
    sender.receive(opened)
    return sender, receiver


@given(st.lists(st.binary(max_size=200), max_size=30), st.integers(min_value=1, max_value=300))
def test_any_writes_under_any_window_arrive_in_order_and_within_it(writes: list[bytes], window: int) -> None:
    sender, receiver = open_pair(make_opened(until=window))
    received = bytearray()
    until = window
    for data in writes:
        sender.write(data)
        while sender.pending:
            chunk = sender.next_chunk()
            if chunk is None:
                assert sender.sent == until
                until += window
                granted = receiver.grant(until)
                assert granted is not None
                sender.receive(granted)
                continue
            assert len(chunk.data) <= LIMITS.chunk_size
            assert chunk.end <= until
            receiver.receive(chunk)
            received += chunk.data
    whole = b"".join(writes)
    assert received == whole
    finish = sender.finish()
    assert finish == Finish(len(whole), head_of(whole))
    receiver.receive(finish)
    sender.receive(receiver.finished(make_status(ResourceState.COMPLETED)))
    assert sender.state is receiver.state is UploadState.ENDED


def test_small_writes_are_gathered_and_large_ones_are_not_copied() -> None:
    sender, _ = open_pair()
    for _ in range(10):
        sender.write(b"abc")
    chunk = sender.next_chunk()
    assert chunk is not None
    assert chunk.data == b"abc" * 10
    large = bytes(100)
    sender.write(large)
    first = sender.next_chunk()
    assert first is not None
    assert isinstance(first.data, memoryview)
    assert first.data.obj is large


def test_the_receiver_refuses_what_does_not_continue() -> None:
    data = b"0123456789"
    good = Chunk(0, data, chunk_hash(data), b"")
    cases: list[tuple[Chunk, type[Exception]]] = [
        (good._replace(offset=1), WrongOffset),
        (good._replace(previous=b"x" * 8), IntegrityError),
        (good._replace(data=b""), ProtocolError),
        (good._replace(data=bytes(65)), MessageTooLarge),
    ]
    for bad, error in cases:
        _, receiver = open_pair()
        with pytest.raises(error):
            receiver.receive(bad)
        receiver.receive(good)
        with pytest.raises(WrongOffset) as repeated:
            receiver.receive(good)
        assert repeated.value.expected == 10
        with pytest.raises(IntegrityError):
            receiver.receive(Chunk(10, data, chunk_hash(data), b""))
    _, receiver = open_pair(make_opened(until=9))
    with pytest.raises(ProtocolError, match="overdraw"):
        receiver.receive(good)


@pytest.mark.parametrize("state", list(UploadState))
def test_only_the_table_moves_an_upload(state: UploadState) -> None:
    data = b"x"
    messages = [
        Chunk(0, data, chunk_hash(data), b""),
        Finish(0, EMPTY_HEAD),
        Abort("no"),
        Window(10),
        Finished(make_status()),
        make_opened(),
        Checkpoint(0, 0, EMPTY_HEAD),
    ]
    for message in messages:
        sender, receiver = open_pair()
        sender.state = receiver.state = state
        if (state, type(message)) not in UPLOAD_TRANSITIONS:
            with pytest.raises(ProtocolError):
                receiver.receive(message)  # type: ignore[arg-type] # messages of the server are garbage here
            with pytest.raises(ProtocolError):
                sender.receive(message)  # type: ignore[arg-type] # messages of the client are garbage here
            assert sender.state is receiver.state is state


def test_checkpoints_that_cannot_be_are_refused() -> None:
    sender, _ = open_pair()
    sender.write(b"12345")
    sender.next_chunk()
    sender.receive(Checkpoint(3, 0, b"h" * 16))
    for impossible in (2, 6):
        with pytest.raises(ProtocolError):
            sender.receive(Checkpoint(impossible, 0, b"h" * 16))
    assert sender.announced.size == 3


def test_a_continued_upload_needs_its_hash_state() -> None:
    prefix = bytes(range(200))
    sender, receiver = open_pair(make_opened(offset=200, until=456, head=head_of(prefix)))
    with pytest.raises(RuntimeError):
        sender.continue_from(HeadHasher())
    hasher = HeadHasher()
    hasher.update(prefix)
    sender.continue_from(hasher)
    sender.write(b"rest")
    chunk = sender.next_chunk()
    assert chunk is not None
    assert (chunk.offset, chunk.previous) == (200, b"")
    receiver.receive(chunk)
    assert sender.finish() == Finish(204, head_of(prefix + b"rest"))


def test_an_abort_drops_what_is_pending() -> None:
    sender, receiver = open_pair()
    sender.write(b"never sent")
    receiver.receive(sender.abort("why"))
    assert sender.pending == 0
    assert sender.next_chunk() is None
    with pytest.raises(RuntimeError):
        sender.finish()
    sender.receive(receiver.finished(None))
    assert sender.final == Finished(None)


def test_this_sides_defects_are_not_the_peers() -> None:
    sender, _ = open_pair()
    sender.write(b"x")
    with pytest.raises(RuntimeError):
        sender.finish()
    with pytest.raises(InvalidArgument):
        sender.write("text")  # type: ignore[arg-type] # what a user without types may do


def make_started(offset: int = 0) -> Started:
    return Started(offset=offset, end=None, line=None, status=make_status(), limits=LIMITS)


def download_pair(*, offset: int = 0, window: int = 100) -> tuple[DownloadSender, DownloadReceiver]:
    receiver = DownloadReceiver(window=window, max_chunk=1000)
    receiver.receive(make_started(offset))
    return DownloadSender(offset=offset, window=window), receiver


@given(st.binary(min_size=1, max_size=2000), st.integers(1, 300), st.integers(1, 500), st.booleans())
def test_a_download_arrives_proven_and_within_its_window(data: bytes, size: int, window: int, whole: bool) -> None:
    offset = 0 if whole else 7
    sender, receiver = download_pair(offset=offset, window=window)
    position = 0
    while position < len(data):
        assert sender.may_send
        piece = data[position : position + size]
        position += len(piece)
        checkpoint = Checkpoint(offset + position, 0, head_of(data[:position])) if whole else None
        receiver.receive(sender.chunk(piece, chunk_hash(piece), checkpoint))
        grant = receiver.consume(offset + position)
        if grant is not None:
            assert sender.receive(grant)
    status = make_status(ResourceState.COMPLETED, offset + len(data), head_of(data))
    receiver.receive(sender.end(status))
    assert receiver.state is DownloadState.ENDED


def test_a_reader_that_takes_nothing_stops_the_sender_after_one_chunk_too_much() -> None:
    sender, receiver = download_pair(window=100)
    for _ in range(2):
        assert sender.may_send
        receiver.receive(sender.chunk(bytes(60), chunk_hash(bytes(60)), None))
    assert not sender.may_send
    with pytest.raises(ProtocolError, match="overdraw"):
        receiver.receive(sender.chunk(b"x", chunk_hash(b"x"), None))


@pytest.mark.parametrize("damage", ["data", "hash", "previous", "offset", "lost", "repeated", "truncated"])
def test_every_damage_is_found_at_its_chunk(damage: str) -> None:
    sender, receiver = download_pair()
    first = sender.chunk(b"first", chunk_hash(b"first"), None)
    second = sender.chunk(b"second", chunk_hash(b"second"), None)
    third = sender.chunk(b"third", chunk_hash(b"third"), None)
    receiver.receive(first)
    bad = {
        "data": second._replace(data=b"sec0nd"),
        "hash": second._replace(hash=bytes(8)),
        "previous": second._replace(previous=bytes(8)),
        "offset": second._replace(offset=6),
        "lost": third,
        "repeated": first,
        "truncated": second._replace(data=b"seco"),
    }[damage]
    with pytest.raises(IntegrityError) as error:
        receiver.receive(bad)
    assert error.value.offset == 5


def test_a_lost_last_chunk_shows_at_the_end() -> None:
    sender, receiver = download_pair()
    receiver.receive(sender.chunk(b"first", chunk_hash(b"first"), None))
    sender.chunk(b"last", chunk_hash(b"last"), None)
    with pytest.raises(IntegrityError) as error:
        receiver.receive(sender.end(make_status()))
    assert error.value.offset == 5


def test_heads_are_compared_from_the_start_on() -> None:
    sender, receiver = download_pair()
    good = Checkpoint(5, 0, head_of(b"first"))
    receiver.receive(sender.chunk(b"first", chunk_hash(b"first"), good))
    with pytest.raises(IntegrityError) as error:
        receiver.receive(sender.chunk(b"x", chunk_hash(b"x"), dataclasses.replace(good, size=6)))
    assert error.value.offset == 5
    sender, receiver = download_pair()
    receiver.receive(sender.chunk(b"first", chunk_hash(b"first"), None))
    with pytest.raises(IntegrityError):
        receiver.receive(sender.end(make_status(ResourceState.COMPLETED, 5, bytes(16))))


def test_without_verification_order_is_checked_all_the_same() -> None:
    receiver = DownloadReceiver(window=0, max_chunk=1000, verify=False)
    receiver.receive(make_started())
    receiver.receive(Chunk(0, b"changed", chunk_hash(b"chunked"), b""))
    with pytest.raises(IntegrityError):
        receiver.receive(Chunk(8, b"x", chunk_hash(b"x"), chunk_hash(b"chunked")))


@pytest.mark.parametrize("state", list(DownloadState))
def test_only_the_table_moves_a_download(state: DownloadState) -> None:
    for message in (make_started(), Chunk(0, b"x", chunk_hash(b"x"), b""), Window(1), make_opened()):
        receiver = DownloadReceiver(window=0, max_chunk=1000)
        receiver.receive(make_started())
        receiver.state = state
        if (state, type(message)) not in DOWNLOAD_TRANSITIONS:
            with pytest.raises(ProtocolError):
                receiver.receive(message)


def test_windows_come_only_from_readers_that_asked_for_one() -> None:
    unlimited = DownloadSender(offset=0, window=0)
    assert unlimited.may_send
    with pytest.raises(ProtocolError):
        unlimited.receive(Window(10))
    with pytest.raises(ProtocolError):
        DownloadSender(offset=0, window=1).receive(Abort("what"))
