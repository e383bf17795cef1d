"""Bulks: many records become visible at once, or none of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cells import WIRED_RECORD_CELLS, RecordCell
from google.protobuf import descriptor_pb2
from manifest import proves
from message_faults import Direction
from record_databases import RecordDatabase, contact, eventually
from servers import LocalServer, NewServer
from soak import SOAK
from tcp_proxy import TcpProxy

from tailrace_client_upload_api import BulkUpload, RecordContent
from tailrace_common_api import (
    BulkConflict,
    BulkRefused,
    BulkResult,
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    ProblemKind,
    QuotaExceeded,
    Record,
    RecordEndNotFound,
    RecordProblem,
    Reporting,
    TailraceError,
    record_problems,
)
from tailrace_impl_common import ConnectedClient

Records = Iterable[RecordContent] | AsyncIterable[RecordContent]
INVALID, DUPLICATE, REFERENCE = ProblemKind.INVALID, ProblemKind.DUPLICATE, ProblemKind.REFERENCE


async def deliver(
    client: ConnectedClient, records: Records, *, collection: str = "contacts", **arguments: Any
) -> BulkResult:
    """Send records in one bulk and return its result."""
    async with client.bulk(collection, **arguments) as bulk:
        await bulk.send_all(records)
    assert bulk.result is not None
    return bulk.result


async def send(client: ConnectedClient, count: int, *, first: int = 0, **arguments: Any) -> BulkResult:
    """Send contacts in one bulk and return its result."""
    return await deliver(client, (contact(number) for number in range(first, first + count)), **arguments)


async def give_up(client: ConnectedClient, records: Records, **arguments: Any) -> BulkUpload:
    """Send records, and leave the bulk with an exception."""
    bulk = client.bulk("contacts", **arguments)
    with suppress(ZeroDivisionError):
        async with bulk:
            await bulk.send_all(records)
            raise ZeroDivisionError
    return bulk


async def refused(client: ConnectedClient, records: Records, **arguments: Any) -> list[RecordProblem]:
    """Send records that are refused and return what is wrong with them."""
    with pytest.raises(BulkRefused) as caught:
        await deliver(client, records, **arguments)
    return list(record_problems(caught.value))


def person_descriptors() -> bytes:
    """Return what `protoc --descriptor_set_out` writes of a file with one message."""
    file = descriptor_pb2.FileDescriptorProto(name="person.proto", package="suite", syntax="proto3")
    person = file.message_type.add(name="Person")
    person.field.add(name="name", number=1, type=9, label=1)
    person.field.add(name="age", number=2, type=5, label=1)
    return descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()


def result_of(bulk: BulkUpload) -> BulkResult | None:
    return bulk.result


def places(problems: Sequence[RecordProblem]) -> list[tuple[int, ProblemKind, str | None]]:
    return [(problem.index, problem.kind, problem.field) for problem in problems]


async def eventually_nothing_is_staged(database: RecordDatabase) -> None:
    """Wait until the purge of a bulk that was given up has run."""
    await eventually(database.staged, 0)


# One call, one answer


@proves("REC-0", "REC-1", "REC-4")
async def test_a_bulk_becomes_visible_as_a_whole(
    record_client: ConnectedClient, record_database: RecordDatabase
) -> None:
    count = 2500
    async with record_client.bulk("contacts") as bulk:
        for number in range(count):
            await bulk.send(contact(number))
        assert await record_database.contacts() == 0
        assert result_of(bulk) is None
    result = result_of(bulk)
    assert result is not None
    assert (result.records, result.collection, result.id) == (count, "contacts", bulk.id)
    assert not result.repeated
    assert await record_database.contacts() == count
    rows = await record_database.rows("SELECT name, email, city FROM contacts")
    wanted = {tuple(contact(number).values()) for number in range(count)}
    assert set(rows) == wanted
    assert await record_database.staged() == 0


@proves("REC-0")
async def test_records_are_bytes_text_mappings_and_have_keys(
    record_client: ConnectedClient, record_database: RecordDatabase
) -> None:
    texts = ['{"n": 1}', '{"n":2, "text":"\\u00e9 é 🙂"}', '{"n":3}', '{"n":4}']
    async with record_client.bulk("notes") as bulk:
        await bulk.send(texts[0].encode())
        await bulk.send(texts[1])
        await bulk.send(Record(texts[2].encode(), "third"))
        await bulk.send({"n": 4}, key="vierte é")
    rows = await record_database.rows("SELECT key, record FROM notes ORDER BY position")
    assert [key for key, _ in rows] == [None, None, "third", "vierte é"]
    assert [json.loads(record) for _, record in rows] == [json.loads(text) for text in texts]


@proves("REC-0")
async def test_a_collection_of_protobuf_messages_takes_no_others(
    new_record_server: NewServer, record_cell: RecordCell, record_database: RecordDatabase, tmp_path: Path
) -> None:
    descriptors = tmp_path / "person.binpb"
    descriptors.write_bytes(person_descriptors())
    more = {"people": {"message": "suite.Person", "descriptors": str(descriptors)}}
    client = (await new_record_server(ends={"collections": more})).connect(record_cell.transport)
    # Fields 1 and 2: a name and an age.
    people = [b"\x0a\x03Ada\x10\x24", b"\x0a\x05Grace\x10\x55", b""]
    async with client.bulk("people") as bulk:
        await bulk.send_all(people)
    assert result_of(bulk) is not None
    rows = await record_database.rows("SELECT record FROM people ORDER BY position")
    assert [bytes(record) for (record,) in rows] == people
    problems = await refused(client, [people[0], b"\x0a\xff"], collection="people")
    assert places(problems) == [(1, INVALID, None)]


@proves("REC-0")
async def test_a_record_is_limited_in_size(new_record_server: NewServer, record_cell: RecordCell) -> None:
    server = await new_record_server(max_record_size=5000)
    client = server.connect(record_cell.transport)
    async with client.bulk("notes") as bulk:
        assert bulk.limits.record_bytes == 5000
        with pytest.raises(InvalidArgument):
            await bulk.send({"text": "x" * 5000})
        await bulk.send({"text": "x" * 4900})
        for bad in (b"not JSON" * 1000, Record(b"{}", "k" * 256), Record(b"{}", "")):
            with pytest.raises(InvalidArgument):
                await bulk.send(bad)
    assert bulk.result is not None
    assert bulk.result.records == 1


@proves("REC-0", "REC-1")
async def test_records_of_a_mebibyte_pass(record_client: ConnectedClient, record_database: RecordDatabase) -> None:
    text = "x" * (1024 * 1024 - 100)
    async with record_client.bulk("notes") as bulk:
        for number in range(5):
            await bulk.send({"number": number, "text": text})
    rows = await record_database.rows("SELECT record FROM notes ORDER BY position")
    assert [json.loads(record) for (record,) in rows] == [{"number": n, "text": text} for n in range(5)]


@proves("REC-1")
async def test_groups_of_ten_work(
    new_record_server: NewServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server = await new_record_server(group_records=10, group_seconds=0.01)
    result = await send(server.connect(record_cell.transport), 1234)
    assert result.records == 1234
    assert await record_database.contacts() == 1234


@proves("REC-1")
async def test_a_slow_producer_is_staged_by_time(
    new_record_server: NewServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server = await new_record_server(group_seconds=0.01)
    async with server.connect(record_cell.transport).bulk("contacts") as bulk:
        await bulk.send(contact(0))
        await eventually(record_database.staged, 1)
        await bulk.send(contact(1))
        assert await record_database.contacts() == 0
    assert await record_database.contacts() == 2


@proves("REC-1")
@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"name": "", "email": "a"}, "name"),
        ({"name": "x", "email": 5}, "email"),
        ({"name": "x"}, None),
        ({"name": "x", "email": "a", "more": 1}, None),
        (b"[1]", None),
        (b'{"name":', None),
        (b"\xff", None),
    ],
)
async def test_the_first_bad_record_ends_a_bulk_at_once(
    record_client: ConnectedClient, record_database: RecordDatabase, bad: Any, field: str | None
) -> None:
    async def endless() -> AsyncGenerator[Any, None]:
        for number in range(100):
            yield contact(number)
        yield bad
        number = 100
        while True:
            yield contact(number)
            number += 1

    # The producer never comes to an end: the error does not wait for one.
    (problem,) = await refused(record_client, endless())
    assert (problem.index, problem.kind) == (100, INVALID)
    if field is not None:
        assert problem.field == field
    assert problem.problem
    assert await record_database.contacts() == 0
    await eventually_nothing_is_staged(record_database)


@proves("REC-1")
async def test_all_bad_records_are_reported_where_that_is_chosen(
    record_client: ConnectedClient, record_database: RecordDatabase
) -> None:
    records = [contact(number) for number in range(1500)]
    for index in (3, 700, 1499):
        records[index] = {"name": "", "email": "x"}
    problems = await refused(record_client, records, reporting=Reporting.ALL)
    assert [(problem.index, problem.kind, problem.field) for problem in problems] == [
        (3, INVALID, "name"),
        (700, INVALID, "name"),
        (1499, INVALID, "name"),
    ]
    assert await record_database.contacts() == 0
    await eventually_nothing_is_staged(record_database)


@proves("REC-1")
async def test_an_unknown_collection_is_told(record_client: ConnectedClient) -> None:
    with pytest.raises(RecordEndNotFound) as caught:
        await record_client.bulk("nowhere").open()
    assert caught.value.id == "nowhere"
    with pytest.raises(InvalidArgument):
        await record_client.bulk("contacts", content_type="text/csv").open()


# All or nothing


@proves("REC-2")
async def test_leaving_with_an_exception_leaves_nothing(
    record_client: ConnectedClient, record_database: RecordDatabase
) -> None:
    bulk = await give_up(record_client, [contact(number) for number in range(3000)])
    await eventually_nothing_is_staged(record_database)
    assert await record_database.contacts() == 0
    with pytest.raises(TailraceError):
        await bulk.send(contact(1))
    assert (await send(record_client, 10)).records == 10


@proves("REC-2")
@pytest.mark.parametrize("after", [0, 1, 999, 1000, 1001, 5000])
async def test_a_cancelled_bulk_leaves_nothing(
    record_client: ConnectedClient, record_database: RecordDatabase, after: int
) -> None:
    reached = asyncio.Event()

    async def produce() -> None:
        async with record_client.bulk("contacts") as bulk:
            await bulk.send_all([contact(number) for number in range(after)])
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(produce())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually_nothing_is_staged(record_database)
    assert await record_database.contacts() == 0


@proves("REC-2")
@pytest.mark.record_cells(WIRED_RECORD_CELLS)
async def test_a_cut_connection_leaves_nothing(
    record_server: LocalServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    async with TcpProxy(record_server.url(record_cell.transport)) as proxy:
        client = record_server.connect(record_cell.transport, url=proxy.url, reconnect_timeout=0.0)

        async def produce() -> AsyncGenerator[Any, None]:
            number = 0
            while True:
                if number == 2000:
                    proxy.cut()
                yield contact(number)
                number += 1
                await asyncio.sleep(0)

        with pytest.raises(ConnectionLost):
            await deliver(client, produce())
    await eventually_nothing_is_staged(record_database)
    assert await record_database.contacts() == 0


@proves("REC-2")
async def test_an_idle_bulk_ends_and_leaves_nothing(
    new_record_server: NewServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server = await new_record_server(bulk_idle=2.0, group_seconds=0.01)

    async def pausing() -> AsyncGenerator[Any, None]:
        yield contact(0)
        yield contact(1)
        # It ends by itself; who sends is told at the next call.
        await eventually(record_database.staged, 2)
        await eventually(record_database.staged, 0)
        for number in range(10_000):
            yield contact(number)
            await asyncio.sleep(0)

    with pytest.raises(DeadlineExceeded):
        await deliver(server.connect(record_cell.transport), pausing())
    await eventually_nothing_is_staged(record_database)
    assert await record_database.contacts() == 0


@proves("REC-2", "REC-3")
async def test_readers_see_nothing_or_all(record_client: ConnectedClient, record_database: RecordDatabase) -> None:
    count = 1_000_000 if SOAK else 10_000
    seen: set[int] = set()
    sending = asyncio.create_task(send(record_client, count))
    while not sending.done():
        seen.add(await record_database.contacts())
        await asyncio.sleep(0.005)
    await sending
    seen.add(await record_database.contacts())
    assert seen <= {0, count}
    assert count in seen


@proves("REC-3")
async def test_what_a_server_leaves_staged_is_swept(
    new_record_server: NewServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server = await new_record_server(group_seconds=0.01, staging_retention=3.0, sweep_interval=0.1)
    client = server.connect(record_cell.transport)
    bulk = client.bulk("contacts")
    await bulk.open()
    await bulk.send(contact(0))
    await eventually(record_database.staged, 1)
    # It neither sends nor leaves; its time comes, and then it cannot commit what is gone.
    await eventually_nothing_is_staged(record_database)
    with pytest.raises(TailraceError):
        await bulk.commit()
    await bulk.cancel()
    assert await record_database.contacts() == 0


# Refused at the commit


@proves("REC-4")
async def test_duplicates_and_unknown_references_are_named(
    record_client: ConnectedClient, record_database: RecordDatabase
) -> None:
    await send(record_client, 10)
    records = [contact(number) for number in range(100, 1300)]
    records[7] = contact(3)
    records[1100] = contact(5)
    assert places(await refused(record_client, records)) == [(7, DUPLICATE, "email"), (1100, DUPLICATE, "email")]
    records = [contact(number) for number in range(100, 1300)]
    records[900] = contact(100)
    problems = await refused(record_client, records)
    assert {problem.kind for problem in problems} == {DUPLICATE}
    assert {problem.index for problem in problems} <= {0, 900}
    assert 900 in {problem.index for problem in problems}
    records = [contact(number) for number in range(100, 1300)]
    records[1] = contact(101, city=77)
    records[1199] = contact(1299, city=78)
    assert places(await refused(record_client, records)) == [(1, REFERENCE, "city"), (1199, REFERENCE, "city")]
    assert await record_database.contacts() == 10
    await eventually_nothing_is_staged(record_database)


@proves("REC-4")
async def test_the_list_of_problems_is_bounded(record_client: ConnectedClient) -> None:
    await send(record_client, 1000)
    with pytest.raises(BulkRefused) as caught:
        await send(record_client, 1000)
    problems = record_problems(caught.value)
    assert caught.value.total == 1000
    assert 10 <= len(problems) <= 100
    assert [problem.index for problem in problems] == list(range(len(problems)))


@proves("REC-4")
async def test_of_two_bulks_with_the_same_records_one_commits(
    record_client: ConnectedClient, record_database: RecordDatabase
) -> None:
    rounds = 5
    for turn in range(rounds):
        outcomes = await asyncio.gather(
            *(send(record_client, 500, first=500 * turn) for _ in range(3)), return_exceptions=True
        )
        losers = [outcome for outcome in outcomes if isinstance(outcome, BulkRefused)]
        assert len(losers) == 2, outcomes
        assert {problem.kind for loser in losers for problem in record_problems(loser)} == {DUPLICATE}
        assert await record_database.contacts() == 500 * (turn + 1)


@proves("REC-4")
async def test_an_empty_bulk_is_refused(record_client: ConnectedClient, record_database: RecordDatabase) -> None:
    assert await refused(record_client, []) == []
    assert await record_database.contacts() == 0


# Limits and keys


@proves("REC-5")
async def test_bulks_are_limited(
    new_record_server: NewServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server = await new_record_server(max_bulk_records=1000, max_bulk_bytes=100_000)
    client = server.connect(record_cell.transport)
    with pytest.raises(QuotaExceeded) as caught:
        await send(client, 1001)
    assert caught.value.maximum == 1000
    with pytest.raises(QuotaExceeded) as caught:
        await deliver(client, [{"text": "x" * 9990}] * 11, collection="notes")
    assert caught.value.maximum == 100_000
    await eventually_nothing_is_staged(record_database)
    assert await record_database.contacts() == 0
    assert (await send(client, 1000)).records == 1000


@proves("REC-5")
async def test_a_server_keeps_the_limits_of_bulks_by_itself(
    new_record_server: NewServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    server = await new_record_server(max_bulk_records=10, max_bulk_bytes=1000)
    client = server.connect(record_cell.transport)
    for limit, records in (
        ("records per bulk", [b"{}"] * 11),
        ("bytes per bulk", [b'{"a":"%s"}' % (b"x" * 500)] * 2),
    ):
        bulk = client.bulk("notes")
        await bulk.open()
        # Not every client looks at them itself.
        bulk._most_records = bulk._most_bytes = 2**62
        with pytest.raises(QuotaExceeded) as caught:
            await send_and_commit(bulk, records)
        assert caught.value.limit == limit
        await bulk.cancel()
    await eventually_nothing_is_staged(record_database)


async def send_and_commit(bulk: BulkUpload, records: Sequence[bytes]) -> None:
    await bulk.send_all(records)
    await bulk.commit()


@proves("REC-5")
async def test_a_repeated_key_gives_the_first_result(
    record_client: ConnectedClient, record_server: LocalServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    first = await send(record_client, 1500, idempotency_key="once")
    other = record_server.connect(record_cell.transport)
    async with other.bulk("contacts", idempotency_key="once") as bulk:
        # It is there before anything was sent.
        assert bulk.result is not None
        for number in range(1500):
            await bulk.send(contact(number))
    again = bulk.result
    assert again is not None
    assert again.repeated
    assert (again.id, again.records, again.size, again.digest, again.committed_at) == (
        first.id,
        first.records,
        first.size,
        first.digest,
        first.committed_at,
    )
    for count in (1499, 1501):
        with pytest.raises(BulkConflict):
            await send(other, count, idempotency_key="once")
    with pytest.raises(BulkConflict):
        await send(other, 1500, first=1, idempotency_key="once")
    with pytest.raises(BulkConflict):
        await deliver(other, [{}], collection="notes", idempotency_key="once")
    assert await record_database.contacts() == 1500


@proves("REC-5", "REC-2")
async def test_a_key_of_a_bulk_that_failed_can_be_used_again(
    record_client: ConnectedClient, record_database: RecordDatabase
) -> None:
    for _ in range(2):
        await refused(record_client, [contact(0), contact(0)], idempotency_key="again")
    await give_up(record_client, [contact(0)], idempotency_key="again")
    assert (await send(record_client, 3, idempotency_key="again")).records == 3
    assert await record_database.contacts() == 3


@proves("REC-5")
async def test_results_outlive_the_server(
    record_server: LocalServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    first = await send(record_server.connect(record_cell.transport), 20, idempotency_key="lasting")
    await record_server.restart()
    await record_server.listen(record_cell.transport)
    again = await send(record_server.connect(record_cell.transport), 20, idempotency_key="lasting")
    assert again.repeated
    assert again.id == first.id
    assert await record_database.contacts() == 20


@proves("REC-5", "REC-2")
@pytest.mark.record_cells(WIRED_RECORD_CELLS)
async def test_a_lost_answer_is_found_again(
    record_server: LocalServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    async with TcpProxy(record_server.url(record_cell.transport)) as proxy:
        client = record_server.connect(record_cell.transport, url=proxy.url)
        async with client.bulk("contacts") as bulk:
            await bulk.send_all([contact(number) for number in range(1000)])
            proxy.stall(Direction.TO_CLIENT)
            committing = asyncio.create_task(bulk.commit())
            await eventually(record_database.contacts, 1000)
            proxy.cut()
            proxy.release()
            result = await committing
    assert result.records == 1000
    assert await record_database.contacts() == 1000
