"""Methods of somebody else's gRPC service as bulks into a table of theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from cells import RECORD_CELLS, Transport
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import Int64Value
from manifest import proves
from record_databases import RecordDatabase, contact, eventually
from servers import LocalServer, NewServer

from tailrace_common_api import BulkRefused, ProblemKind, TailraceError, record_problems
from tailrace_impl_grpc import ERROR_KEY
from tailrace_impl_grpc._error_table import sent_error
from tailrace_impl_grpc._poller import keep_poller
from tailrace_impl_grpc.records import IDEMPOTENCY_KEY, BulkMethods

GRPC_CELLS = frozenset(cell for cell in RECORD_CELLS if cell.transport is Transport.GRPC)
pytestmark = pytest.mark.record_cells(GRPC_CELLS)

Call = grpc.aio.StreamUnaryCall[Any, Int64Value]
Method = Callable[..., Call]


def message(number: int, **more: Any) -> Struct:
    found = Struct()
    fields: dict[str, Any] = {**contact(number, **more)}
    found.update(fields)
    return found


@asynccontextmanager
async def serving(server: LocalServer) -> AsyncIterator[Method]:
    bulks = BulkMethods(server.manager)

    async def create_contacts(requests: AsyncIterator[Struct], context: Any) -> Int64Value:
        result = await bulks.receive("contacts", requests, context)
        return Int64Value(value=result.records)

    handler = grpc.stream_unary_rpc_method_handler(
        create_contacts,
        request_deserializer=Struct.FromString,
        response_serializer=Int64Value.SerializeToString,
    )
    # As our own do: what comes for the event loop of a test before this one is not reported by gRPC in this one.
    keep_poller()
    own = grpc.aio.server()
    own.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("acme.Contacts", {"Create": handler})])
    port = own.add_insecure_port("127.0.0.1:0")
    await own.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel.stream_unary(
                "/acme.Contacts/Create",
                request_serializer=Struct.SerializeToString,
                response_deserializer=Int64Value.FromString,
            )
    finally:
        await own.stop(5.0)


@pytest.fixture
async def method(record_server: LocalServer) -> AsyncIterator[Method]:
    async with serving(record_server) as method:
        yield method


async def error_of(call: Call) -> TailraceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata = caught.value.trailing_metadata() or ()
    assert [key for key, _ in metadata] == [ERROR_KEY]
    error = sent_error(metadata)
    assert error is not None
    return error


@proves("REC-0", "REC-1")
async def test_a_method_of_ones_own_fills_a_table_at_its_half_close(
    method: Method, record_database: RecordDatabase
) -> None:
    call = method()
    for number in range(1500):
        await call.write(message(number))
    await eventually(record_database.staged, 1500)
    assert await record_database.contacts() == 0
    await call.done_writing()
    assert (await call).value == 1500
    rows = await record_database.rows("SELECT name, email, city FROM contacts")
    assert set(rows) == {tuple(contact(number).values()) for number in range(1500)}
    assert await record_database.staged() == 0


@proves("REC-0", "REC-1", "REC-4")
async def test_a_method_of_ones_own_names_what_is_wrong(method: Method, record_database: RecordDatabase) -> None:
    bad = method(iter([message(1), message(2, name="")]))
    error = await error_of(bad)
    assert isinstance(error, BulkRefused)
    assert await bad.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [(found.index, found.kind, found.field) for found in record_problems(error)] == [
        (1, ProblemKind.INVALID, "name")
    ]
    twice = await error_of(method(iter([message(1), message(2), message(1)])))
    assert isinstance(twice, BulkRefused)
    assert 2 in {found.index for found in record_problems(twice)}
    assert {found.kind for found in record_problems(twice)} == {ProblemKind.DUPLICATE}
    assert await record_database.contacts() == 0
    await eventually(record_database.staged, 0)


@proves("REC-2")
@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_method_of_ones_own_leaves_nothing_without_a_half_close(
    method: Method, record_database: RecordDatabase, how: str
) -> None:
    call = method(timeout=None if how == "cancel" else 4.0)
    for number in range(10):
        await call.write(message(number))
    await eventually(record_database.staged, 10)
    if how == "cancel":
        call.cancel()
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await call
    await eventually(record_database.staged, 0)
    assert await record_database.contacts() == 0


@proves("REC-5")
async def test_a_method_of_ones_own_answers_a_repeated_key(method: Method, record_database: RecordDatabase) -> None:
    named: dict[str, Any] = {"metadata": ((IDEMPOTENCY_KEY, "tonight"),)}
    assert (await method(iter([message(1), message(2)]), **named)).value == 2
    # Nothing is sent, and the call is not half-closed.
    assert (await method(**named)).value == 2
    assert await record_database.contacts() == 2


@proves("REC-5")
async def test_limits_hold_for_methods_of_ones_own(
    new_record_server: NewServer, record_database: RecordDatabase
) -> None:
    server = await new_record_server(max_bulk_records=3)
    async with serving(server) as method:
        error = await error_of(method(map(message, range(4))))
        assert error.code == "quota_exceeded"
        assert error.details()["limit"] == "records per bulk"
    await eventually(record_database.staged, 0)
    assert await record_database.contacts() == 0
