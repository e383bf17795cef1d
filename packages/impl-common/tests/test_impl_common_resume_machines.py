"""The machines when a conversation was lost: what is sent again, and from where."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import (
    AlreadyTerminal,
    Checkpoint,
    DataLost,
    FromOffset,
    IntegrityError,
    LastLines,
    Limits,
    Metadata,
    NotFound,
    ProtocolError,
    RangeNotSatisfiable,
    ResourceFailed,
    ResourceState,
    SourceChanged,
    Status,
    Visibility,
)
from tailrace_impl_common import (
    EMPTY_HEAD,
    DownloadReceiver,
    DownloadSender,
    DownloadState,
    HeadHasher,
    Resumption,
    UploadSender,
    UploadState,
    chunk_hash,
    head_of,
)
from tailrace_impl_common.messages import (
    Abort,
    Chunk,
    End,
    Finish,
    Finished,
    Follow,
    Opened,
    Read,
    ReadLines,
    Started,
)

LIMITS = Limits(
    chunk_size=100_000,
    upload_window=1 << 20,
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
DATA = bytes(number * 7 % 251 for number in range(300_000))


def status_of(data: bytes = b"", state: ResourceState = ResourceState.IN_PROGRESS, reason: str | None = None) -> Status:
    return Status(
        reference="inprocess://local/r/" + "0" * 32,
        id="0" * 32,
        version=1,
        state=state,
        size=len(data),
        lines=None,
        head=head_of(data),
        reason=reason,
        alternatives=(),
        metadata=Metadata(name="x"),
        visibility=Visibility.LIVE,
        created_at=0.0,
    )


def opened_at(data: bytes = b"", *, until: int = 1 << 30, epoch: int = 1) -> Opened:
    return Opened(
        status=status_of(data),
        token="t",
        epoch=epoch,
        offset=len(data),
        newlines=0,
        head=head_of(data),
        until=until,
        limits=LIMITS,
    )


def sender_with(data: bytes, announced: int, chunk_size: int = 10_000) -> UploadSender:
    """Return a sender that has sent all of ``data``, of which a part is announced."""
    sender = UploadSender(chunk_size)
    sender.receive(opened_at())
    sender.write(data)
    drain(sender)
    sender.receive(Checkpoint(announced, 0, head_of(data[:announced])))
    return sender


def drain(sender: UploadSender) -> list[Chunk]:
    return list(iter(sender.next_chunk, None))


@given(
    announced=st.integers(0, len(DATA)),
    share=st.floats(0, 1),
    chunk_size=st.sampled_from([1000, 10_000, 70_000, 100_000]),
    pending=st.binary(max_size=20),
)
def test_a_sender_continues_at_any_offset_that_is_not_announced(
    announced: int, share: float, chunk_size: int, pending: bytes
) -> None:
    sender = sender_with(DATA, announced, chunk_size)
    sender.write(pending)
    assert sender.offset == len(DATA) + len(pending)
    offset = announced + int(share * (len(DATA) - announced))
    assert sender.resume(opened_at(DATA[:offset], epoch=2), chunk_size=50_000) is Resumption.CONTINUED
    assert sender.opened is not None
    assert sender.opened.epoch == 2
    assert sender.offset == len(DATA) + len(pending)
    chunks = drain(sender)
    assert b"".join(bytes(chunk.data) for chunk in chunks) == (DATA + pending)[offset:]
    # The chain of the conversation begins anew.
    assert [chunk.previous for chunk in chunks[:1]] in ([], [b""])
    assert sender.finish() == Finish(len(DATA + pending), head_of(DATA + pending))


def test_the_chunks_after_a_resumption_obey_the_new_window_and_size() -> None:
    sender = sender_with(DATA, 100_000)
    sender.resume(opened_at(DATA[:150_000], until=200_000), chunk_size=30_000)
    assert [len(chunk.data) for chunk in drain(sender)] == [30_000, 20_000]
    assert sender.pending == 100_000


def test_a_sender_can_be_resumed_again_and_again() -> None:
    sender = sender_with(DATA, 0)
    for offset in (0, 123_456, 123_456, 200_000, 300_000, 300_000):
        assert sender.resume(opened_at(DATA[:offset]), chunk_size=10_000) is Resumption.CONTINUED
        drain(sender)
    assert sender.head == head_of(DATA)


def test_an_announced_size_never_goes_back() -> None:
    # Two hundred bytes are one segment, so the bytes below the announced size are still there.
    sender = sender_with(DATA[:200], 150)
    assert sender.resume(opened_at(DATA[:100]), chunk_size=10) is Resumption.CONTINUED
    assert sender.announced.size == 150
    drain(sender)
    sender.receive(Checkpoint(120, 0, head_of(DATA[:120])))
    assert sender.announced.size == 150
    with pytest.raises(ProtocolError):
        sender.receive(Checkpoint(110, 0, head_of(DATA[:110])))
    sender.receive(Checkpoint(200, 0, head_of(DATA[:200])))
    assert sender.announced.size == 200


def test_other_bytes_at_the_server_are_found() -> None:
    sender = sender_with(DATA, 100_000)
    other = opened_at(DATA[:150_000] + b"?")
    assert sender.resume(other, chunk_size=10_000) is Resumption.DIFFERS
    more = opened_at(DATA + b"?")
    assert sender.resume(more, chunk_size=10_000) is Resumption.DIFFERS
    known = sender.known_heads(150_001)
    assert known == [(size, head_of(DATA[:size])) for size, _ in known]
    assert max(size for size, _ in known) > 0
    # Nothing has changed by that.
    assert sender.state is UploadState.OPEN
    assert sender.resume(opened_at(DATA[:150_000]), chunk_size=10_000) is Resumption.CONTINUED


def test_a_lost_acknowledgement_is_found_in_the_status() -> None:
    sender = sender_with(DATA, len(DATA))
    sender.finish()
    ended = dataclasses.replace(opened_at(DATA), status=status_of(DATA, ResourceState.COMPLETED))
    assert sender.resume(ended, chunk_size=10_000) is Resumption.ENDED
    assert sender.state is UploadState.ENDED
    assert sender.final == Finished(ended.status)


def test_a_finish_that_did_not_arrive_is_sent_again() -> None:
    sender = sender_with(DATA, 100_000)
    finish = sender.finish()
    assert sender.resume(opened_at(DATA[:200_000]), chunk_size=10_000) is Resumption.CONTINUED
    assert sender.state is UploadState.OPEN
    with pytest.raises(RuntimeError):
        sender.finish()
    drain(sender)
    assert sender.finish() == finish


@pytest.mark.parametrize(
    ("data", "finishing"), [(DATA[:-1], True), (DATA, False)], ids=["other bytes", "not asked for"]
)
def test_a_completion_that_nobody_here_asked_for_is_an_error(data: bytes, finishing: bool) -> None:
    sender = sender_with(DATA, 0)
    if finishing:
        sender.finish()
    ended = dataclasses.replace(opened_at(data), status=status_of(data, ResourceState.COMPLETED))
    with pytest.raises(AlreadyTerminal):
        sender.resume(ended, chunk_size=10_000)
    assert sender.final == Finished(ended.status)


def test_the_reason_of_a_failed_upload_is_told() -> None:
    sender = sender_with(DATA, 1000)
    ended = dataclasses.replace(
        opened_at(DATA[:1000]), status=status_of(DATA[:1000], ResourceState.FAILED, "uploader lost")
    )
    with pytest.raises(ResourceFailed, match="uploader lost") as caught:
        sender.resume(ended, chunk_size=10_000)
    assert caught.value.size == 1000


def test_a_server_that_lost_announced_bytes_gets_them_from_the_source() -> None:
    sender = sender_with(DATA, 200_000)
    back = opened_at(DATA[:50_000])
    assert sender.resume(back, chunk_size=10_000) is Resumption.MISSING
    hasher = HeadHasher()
    hasher.update(DATA[:50_000])
    sender.rewind(back, hasher, chunk_size=10_000)
    assert sender.missing is not None
    assert 50_000 < sender.missing <= 200_000
    assert sender.sent == 50_000
    # What is written meanwhile comes last.
    sender.write(b"behind")
    assert sender.offset == len(DATA) + 6
    with pytest.raises(RuntimeError):
        sender.finish()
    received = bytearray()
    for start in range(50_000, sender.missing, 33_000):
        sender.refill(DATA[start : min(start + 33_000, sender.missing)])
        received += b"".join(bytes(chunk.data) for chunk in drain(sender))
    sender.close_gap()
    received += b"".join(bytes(chunk.data) for chunk in drain(sender))
    assert DATA[:50_000] + received == DATA + b"behind"
    assert sender.announced.size == 200_000
    assert sender.finish() == Finish(len(DATA) + 6, head_of(DATA + b"behind"))


def test_the_conversation_may_be_lost_while_the_source_is_read_again() -> None:
    sender = sender_with(DATA, 200_000)
    back = opened_at(DATA[:50_000])
    for offset in (50_000, 60_000, 0):
        back = opened_at(DATA[:offset])
        assert sender.resume(back, chunk_size=10_000) is Resumption.MISSING
        hasher = HeadHasher()
        hasher.update(DATA[:offset])
        sender.rewind(back, hasher, chunk_size=10_000)
        sender.refill(DATA[offset : offset + 25_000])
        sender.next_chunk()
    assert sender.missing is not None
    sender.refill(DATA[25_000 : sender.missing])
    drain(sender)
    sender.close_gap()
    drain(sender)
    assert sender.finish() == Finish(len(DATA), head_of(DATA))


def test_a_source_that_reads_otherwise_the_second_time_has_changed() -> None:
    sender = sender_with(DATA, 200_000)
    back = opened_at()
    assert sender.resume(back, chunk_size=10_000) is Resumption.MISSING
    sender.rewind(back, HeadHasher(), chunk_size=10_000)
    assert sender.missing is not None
    sender.refill(bytes(sender.missing))
    with pytest.raises(RuntimeError):
        sender.close_gap()
    drain(sender)
    with pytest.raises(SourceChanged):
        sender.close_gap()


def test_bytes_that_nobody_has_any_more_end_the_upload() -> None:
    sender = sender_with(DATA, 200_000)
    back = opened_at(DATA[:50_000])
    assert sender.resume(back, chunk_size=10_000) is Resumption.MISSING
    abort, error = sender.give_up(back)
    assert abort == Abort("data lost")
    assert isinstance(error, DataLost)
    assert (error.announced, error.size) == (200_000, 50_000)
    sender.receive(Finished(status_of(DATA[:50_000], ResourceState.FAILED, "data lost")))
    assert sender.state is UploadState.ENDED


@pytest.mark.parametrize("state", [UploadState.OPENING, UploadState.ABORTING, UploadState.ENDED])
def test_only_what_is_open_can_be_resumed(state: UploadState) -> None:
    sender = UploadSender(1)
    sender.state = state
    with pytest.raises(RuntimeError):
        sender.resume(opened_at(), chunk_size=1)


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=60), st.integers(1, 20_000))
def test_what_is_kept_is_bounded_by_what_is_not_announced(sizes: list[int], window: int) -> None:
    sender = UploadSender(4096)
    sender.receive(opened_at(until=2 * window))
    for size in sizes:
        sender.write(bytes(size))
        while sender.pending:
            if sender.next_chunk() is None:
                announced = sender.sent
                sender.receive(Checkpoint(announced, 0, EMPTY_HEAD))
                opened = sender.opened
                assert opened is not None
                sender._window.grant(announced + 2 * window)
            assert sender.kept <= 2 * window + 64 * 1024 + 4096


# Downloads


def started(offset: int, end: int | None) -> Started:
    return Started(offset=offset, end=end, line=None, status=status_of(DATA), limits=LIMITS)


def feed(receiver: DownloadReceiver, machine: DownloadSender, until: int, size: int = 10_000) -> None:
    while machine.offset < until:
        data = DATA[machine.offset : min(until, machine.offset + size)]
        end = machine.offset + len(data)
        receiver.receive(machine.chunk(data, chunk_hash(data), Checkpoint(end, 0, head_of(DATA[:end]))))


REQUESTS = [
    Read(id="x", token="t", start=100, end=90_000, window=7, chunk_size=2_000),
    Read(id="x", token="t", suffix=89_900, window=7, chunk_size=2_000),
    ReadLines(id="x", token="t", first=3, window=7, chunk_size=2_000),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=["range", "suffix", "lines"])
def test_a_reader_asks_for_the_rest_of_what_it_was_promised(request_: Read | ReadLines) -> None:
    receiver = DownloadReceiver(window=0, max_chunk=100_000)
    assert receiver.again(request_) == request_, "nothing was answered yet"
    receiver.receive(started(100, 90_000))
    feed(receiver, DownloadSender(offset=100, window=0), 50_100)
    rest = receiver.again(request_)
    assert rest == Read(id="x", token="t", start=50_100, end=90_000, window=7, chunk_size=2_000)
    assert receiver.state is DownloadState.STARTING
    receiver.receive(started(50_100, 90_000))
    sender = DownloadSender(offset=50_100, window=0)
    feed(receiver, sender, 90_000)
    receiver.receive(sender.end(status_of(DATA)))
    assert receiver.end is not None
    # The end itself may get lost.
    assert receiver.again(request_) == Read(id="x", token="t", start=90_000, end=90_000, window=7, chunk_size=2_000)


def test_a_follower_asks_for_what_comes_behind_its_last_byte() -> None:
    request = Follow(id="x", start=LastLines(5), window=9, chunk_size=3_000)
    receiver = DownloadReceiver(window=0, max_chunk=100_000)
    receiver.receive(started(1000, None))
    feed(receiver, DownloadSender(offset=1000, window=0), 2000)
    assert receiver.again(request) == Follow(id="x", start=FromOffset(2000), window=9, chunk_size=3_000)


def test_the_head_goes_on_over_conversations() -> None:
    request = Follow(id="x", start=FromOffset(0))
    receiver = DownloadReceiver(window=0, max_chunk=100_000)
    for start in range(0, 50_000, 10_000):
        receiver.receive(started(start, None))
        feed(receiver, DownloadSender(offset=start, window=0), start + 10_000)
        receiver.again(request)
    receiver.receive(started(50_000, None))
    sender = DownloadSender(offset=50_000, window=0)
    with pytest.raises(IntegrityError) as caught:
        receiver.receive(sender.chunk(b"other", chunk_hash(b"other"), Checkpoint(50_005, 0, head_of(DATA[:50_005]))))
    assert caught.value.offset == 50_000
    assert receiver.again(request) is None, "no other answer makes it right"


def test_a_chunk_that_was_refused_is_asked_for_again() -> None:
    request = Read(id="x", start=0, end=100)
    receiver = DownloadReceiver(window=0, max_chunk=100_000)
    receiver.receive(started(0, 100))
    feed(receiver, DownloadSender(offset=0, window=0), 50)
    with pytest.raises(IntegrityError):
        receiver.receive(Chunk(50, b"changed on the way", bytes(8), chunk_hash(DATA[:50])))
    with pytest.raises(IntegrityError):
        receiver.receive(Chunk(60, DATA[60:70], chunk_hash(DATA[60:70]), chunk_hash(DATA[50:60])))
    assert receiver.again(request) == Read(id="x", start=50, end=100)


@pytest.mark.parametrize("ended", [False, True], ids=["chunk", "end"])
def test_a_chunk_that_was_handed_out_and_is_not_the_one_that_was_sent_ends_it(ended: bool) -> None:
    request = Read(id="x", start=10, end=100)
    receiver = DownloadReceiver(window=0, max_chunk=100_000)
    receiver.receive(started(10, 100))
    feed(receiver, DownloadSender(offset=10, window=0), 50)
    forged = chunk_hash(b"what was sent in its place")
    with pytest.raises(IntegrityError):
        receiver.receive(
            End(offset=50, previous=forged, status=status_of(DATA))
            if ended
            else Chunk(50, DATA[50:60], chunk_hash(DATA[50:60]), forged)
        )
    assert receiver.again(request) is None


def test_the_window_begins_anew() -> None:
    receiver = DownloadReceiver(window=100, max_chunk=10)
    receiver.receive(started(0, None))
    feed(receiver, DownloadSender(offset=0, window=0), 100, 10)
    receiver.again(Follow(id="x", start=FromOffset(0), window=100))
    receiver.receive(started(100, None))
    feed(receiver, DownloadSender(offset=100, window=0), 200, 10)
    window = receiver.consume(200)
    assert window is not None
    assert window.until == 300


@pytest.mark.parametrize("answer", [(49, 100), (51, 100), (50, 99), (50, None)])
def test_a_rest_that_was_not_asked_for_is_refused(answer: tuple[int, int | None]) -> None:
    receiver = DownloadReceiver(window=0, max_chunk=100_000)
    receiver.receive(started(0, 100))
    feed(receiver, DownloadSender(offset=0, window=0), 50)
    receiver.again(Read(id="x", end=100))
    with pytest.raises(ProtocolError):
        receiver.receive(started(*answer))


def test_a_server_with_less_than_was_delivered_has_lost_data() -> None:
    error = RangeNotSatisfiable(start=50, end=None, size=20)
    receiver = DownloadReceiver(window=0, max_chunk=100_000)
    assert receiver.explain(error) is error, "nothing was delivered"
    receiver.receive(started(0, None))
    feed(receiver, DownloadSender(offset=0, window=0), 50)
    explained = receiver.explain(error)
    assert isinstance(explained, DataLost)
    assert (explained.announced, explained.size) == (50, 20)
    other = NotFound(id="x")
    assert receiver.explain(other) is other
    part = DownloadReceiver(window=0, max_chunk=100_000)
    part.receive(started(0, 100))
    explained = part.explain(RangeNotSatisfiable(start=0, end=100, size=20))
    assert isinstance(explained, DataLost)
    assert (explained.announced, explained.size) == (100, 20)


def test_an_end_elsewhere_is_refused_and_asked_for_again() -> None:
    receiver = DownloadReceiver(window=0, max_chunk=100_000)
    receiver.receive(started(0, 100))
    feed(receiver, DownloadSender(offset=0, window=0), 50)
    with pytest.raises(IntegrityError):
        receiver.receive(End(offset=100, previous=b"", status=status_of(DATA)))
    assert receiver.end is None
    assert receiver.again(Read(id="x", end=100)) == Read(id="x", start=50, end=100)
