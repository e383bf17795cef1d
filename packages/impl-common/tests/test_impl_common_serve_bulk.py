"""The server's side of a bulk against a client that a test plays."""

import asyncio
from collections import deque
from typing import cast

import pytest
from impl_common_record_bench import FakeManager, FakeRecords

from tailrace_common_api import BulkRefused, ConnectionLost, ProtocolError, RecordBatch, TailraceError, refused_records
from tailrace_impl_common import MessageStream, RecordDigest, _serve_bulk
from tailrace_impl_common._serve_bulk import serve_bulk
from tailrace_impl_common.messages import ClientMessage, ServerMessage
from tailrace_impl_common.record_messages import BulkCommitted, BulkOpened, CommitBulk, OpenBulk
from tailrace_server_api import RequestTelemetry, ResourceService

BATCH = RecordBatch([b"x", b"y"])


class PlayedClient(MessageStream[ServerMessage, ClientMessage]):
    """What the client says is put in; what the server says is kept."""

    def __init__(self, *said: ClientMessage | TailraceError | None) -> None:
        self.said = deque(said)
        self.heard: list[ServerMessage] = []
        self.gone_at: type | None = None

    async def send(self, message: ServerMessage) -> None:
        if self.gone_at is not None and isinstance(message, self.gone_at):
            raise ConnectionLost("the client is gone")
        self.heard.append(message)

    async def receive(self) -> ClientMessage | None:
        if not self.said:
            await asyncio.Event().wait()
        message = self.said.popleft()
        if isinstance(message, TailraceError):
            raise message
        return message


class Counting(RequestTelemetry):
    def __init__(self) -> None:
        self.bytes = 0

    def received(self, count: int) -> None:
        self.bytes += count


def commit_of(batch: RecordBatch) -> CommitBulk:
    digest = RecordDigest()
    digest.update(batch)
    return CommitBulk(digest.records, digest.digest())


async def serve(records: FakeRecords, client: PlayedClient, telemetry: RequestTelemetry | None = None) -> None:
    service = cast(ResourceService, FakeManager(records))
    await serve_bulk(OpenBulk(collection="things"), client, service=service, telemetry=telemetry or RequestTelemetry())


async def test_a_bulk_in_order() -> None:
    both = RecordBatch([*BATCH.data, *BATCH.data])
    records, client, telemetry = FakeRecords(), PlayedClient(BATCH, BATCH, commit_of(both)), Counting()
    await serve(records, client, telemetry)
    assert [type(message) for message in client.heard] == [BulkOpened, BulkCommitted]
    assert records.bulks[0].calls == ["submit", "submit", "commit"]
    assert telemetry.bytes == 2 * BATCH.size


@pytest.mark.parametrize(
    ("end", "error"),
    [(None, ProtocolError), (ConnectionLost("cut"), ConnectionLost), (ProtocolError("garbled"), ProtocolError)],
    ids=["ended without its commit", "lost", "garbled"],
)
async def test_any_other_end_rolls_back(end: TailraceError | None, error: type[TailraceError]) -> None:
    records, client = FakeRecords(), PlayedClient(BATCH, end)
    with pytest.raises(error):
        await serve(records, client)
    assert records.bulks[0].calls == ["submit", "rollback"]
    assert not records.visible


async def test_a_client_that_is_gone_before_it_is_answered_leaves_nothing() -> None:
    records, client = FakeRecords(), PlayedClient()
    client.gone_at = BulkOpened
    with pytest.raises(ConnectionLost):
        await serve(records, client)
    assert records.bulks[0].calls == ["rollback"]


async def test_what_was_committed_stays_though_nobody_hears_of_it() -> None:
    records, client = FakeRecords(), PlayedClient(BATCH, commit_of(BATCH))
    client.gone_at = BulkCommitted
    with pytest.raises(ConnectionLost):
        await serve(records, client)
    assert records.bulks[0].calls == ["submit", "commit"]
    assert len(records.visible) == 2


async def test_a_rollback_that_takes_long_does_not_hold_up_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_serve_bulk, "_PURGE_TIMEOUT", 0.01)
    records, client = FakeRecords(), PlayedClient(BATCH, commit_of(BATCH))
    records.commit_error = refused_records([], 1)
    records.rollback_gate.shut()
    with pytest.raises(BulkRefused):
        await serve(records, client)
    assert records.bulks[0].calls == ["submit", "commit", "rollback"]


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_it_rolls_back_before_it_ends(times: int) -> None:
    records, client = FakeRecords(), PlayedClient(BATCH)
    records.rollback_gate.shut()
    serving = asyncio.create_task(serve(records, client))
    await records.wait_for_bulks(1)
    await records.bulks[0].wait_for(2)
    for _ in range(times):
        serving.cancel()
        await records.rollback_gate.reached.wait()
    if times == 1:
        assert not serving.done()
        records.rollback_gate.open()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert records.bulks[0].calls == ["submit", "rollback"]
