"""Methods of somebody else's service as bulks: everything at the half-close, nothing otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
import pytest
from impl_grpc_ends import MemorySink, ends
from impl_grpc_foreign.contacts_pb2 import Contact, Created, Phone
from impl_grpc_foreign.contacts_pb2_grpc import ContactsServicer, ContactsStub, add_ContactsServicer_to_server

from tailrace_common_api import (
    BulkRefused,
    GoingAway,
    InternalError,
    InvalidArgument,
    PermissionDenied,
    ProblemKind,
    ProtocolError,
    QuotaExceeded,
    RecordEndNotFound,
    RecordProblem,
    Reporting,
    TailraceError,
    Unauthenticated,
    record_problems,
    refused_records,
)
from tailrace_impl_grpc._error_table import error_from_status
from tailrace_impl_grpc._poller import keep_poller
from tailrace_impl_grpc.records import IDEMPOTENCY_KEY, BulkMethods, json_of
from tailrace_impl_server import create_manager
from tailrace_server_api import (
    Authenticator,
    Authorizer,
    Credentials,
    Operation,
    Principal,
    ResourceManager,
)

if TYPE_CHECKING:
    from impl_grpc_foreign.contacts_pb2_grpc import ContactsAsyncStub

PROTOBUF = "application/protobuf"
Receive = Callable[[BulkMethods, AsyncIterator[Contact], Any], Awaitable[Created]]


async def plainly(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
    result = await bulks.receive("things", requests, context)
    return Created(id=result.id, count=result.records, repeated_call=result.repeated)


class Contacts(ContactsServicer):
    """The service of somebody else."""

    def __init__(self, bulks: BulkMethods, receive: Receive) -> None:
        self._bulks = bulks
        self._receive = receive
        self.ended = asyncio.Event()
        """Set when a call has left the method."""

    async def CreateContacts(self, requests: Any, context: Any) -> Created:  # noqa: N802 - the name of the method
        try:
            return await self._receive(self._bulks, requests, context)
        finally:
            self.ended.set()


class Bound:
    """A server of that service over a manager in memory, with a client."""

    def __init__(self) -> None:
        self.sink = MemorySink()
        self.manager: ResourceManager
        self.servicer: Contacts
        self.stub: ContactsAsyncStub
        self.channel: grpc.aio.Channel

    def call(self, *messages: Contact, **options: Any) -> grpc.aio.StreamUnaryCall[Contact, Created]:
        """Call the method with these messages, and half-close."""
        return self.stub.CreateContacts(iter(messages), **options)


Serve = Callable[..., Awaitable[Bound]]


@pytest.fixture
async def serve(no_task_is_left: None) -> AsyncIterator[Serve]:
    running: list[Callable[[], Awaitable[object]]] = []

    async def begin(
        receive: Receive = plainly,
        *,
        content_type: str = "application/json",
        batches: dict[str, Any] | None = None,
        settings: dict[str, object] | None = None,
        **options: Any,
    ) -> Bound:
        keep_poller()
        bound = Bound()
        records = ends(bound.sink, content_type=content_type)
        managed = create_manager(None, settings or {}, records=records, **options)
        await managed.__aenter__()
        running.append(lambda: managed.__aexit__(None, None, None))
        bound.manager = managed.manager
        bound.servicer = Contacts(BulkMethods(managed.manager, **(batches or {})), receive)
        server = grpc.aio.server()
        add_ContactsServicer_to_server(bound.servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        running.append(lambda: server.stop(5.0))
        bound.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        running.append(bound.channel.close)
        bound.stub = cast("ContactsAsyncStub", ContactsStub(bound.channel))
        return bound

    yield begin
    for close in reversed(running):
        await close()


async def error_of(call: Any) -> TailraceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    return error_from_status(error.code(), error.details() or "", error.trailing_metadata() or (), address="test")


def contacts(count: int) -> list[Contact]:
    return [Contact(full_name=f"Ünal {number}", age=number) for number in range(count)]


async def test_messages_become_json_objects_of_one_bulk(serve: Serve) -> None:
    bound = await serve()
    created = await bound.call(
        Contact(full_name="Ünal", age=7, email="", phones=[Phone(number="1")]), Contact(), *contacts(2000)
    )
    assert (created.count, created.repeated_call) == (2002, False)
    assert created.id == bound.sink.origins[0].id
    first, second, *rest = (json.loads(data) for data, _ in bound.sink.visible)
    assert first == {"full_name": "Ünal", "age": 7, "email": "", "phones": [{"number": "1"}]}
    # What cannot be absent is there; what can be is not.
    assert second == {"full_name": "", "age": 0, "phones": []}
    assert [record["age"] for record in rest] == list(range(2000))
    assert {key for _, key in bound.sink.visible} == {None}
    assert "Ünal".encode() in bound.sink.visible[0][0]
    assert bound.sink.commits == 1


async def test_messages_are_their_own_bytes_where_the_collection_takes_protobuf(serve: Serve) -> None:
    bound = await serve(content_type=PROTOBUF)
    sent = contacts(10)
    assert (await bound.call(*sent)).count == 10
    assert [Contact.FromString(data) for data, _ in bound.sink.visible] == sent


async def test_content_and_keys_are_what_the_method_says(serve: Serve) -> None:
    async def receive(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
        result = await bulks.receive(
            "things",
            requests,
            context,
            content=lambda contact: contact.phones[0] if contact.phones else b'{"by":"hand"}',
            record_key=lambda contact: contact.full_name,
        )
        return Created(count=result.records)

    bound = await serve(receive)
    await bound.call(Contact(full_name="ä", phones=[Phone(number="1")]), Contact(), Contact(full_name="b"))
    assert bound.sink.visible == [(b'{"number":"1"}', "ä"), (b'{"by":"hand"}', None), (b'{"by":"hand"}', "b")]


async def test_a_repeated_key_is_answered_before_a_message_is_looked_at(serve: Serve) -> None:
    bound = await serve()
    named: dict[str, Any] = {"metadata": ((IDEMPOTENCY_KEY, "night 1"),)}
    created = await bound.call(*contacts(3), **named)
    # It sends nothing, does not half-close, and has the answer.
    again = await bound.stub.CreateContacts(**named)
    assert (again.id, again.count, again.repeated_call) == (created.id, 3, True)
    assert bound.sink.commits == 1
    assert len(bound.sink.visible) == 3
    assert [origin.key for origin in bound.sink.origins] == ["night 1", "night 1"]


@pytest.mark.parametrize("values", [["a", "b"], [""], ["x" * 256]])
async def test_keys_that_are_none_are_refused(serve: Serve, values: list[str]) -> None:
    bound = await serve()
    error = await error_of(bound.call(*contacts(1), metadata=[(IDEMPOTENCY_KEY, value) for value in values]))
    assert isinstance(error, InvalidArgument)
    assert error.field == "idempotency_key"
    assert bound.sink.origins == []


async def cancel(call: grpc.aio.StreamUnaryCall[Contact, Created], _bound: Bound) -> None:
    call.cancel()


async def lose_the_connection(_call: grpc.aio.StreamUnaryCall[Contact, Created], bound: Bound) -> None:
    await bound.channel.close()


@pytest.mark.parametrize("leave", [cancel, lose_the_connection])
async def test_who_leaves_without_half_closing_leaves_nothing(
    serve: Serve, leave: Callable[[grpc.aio.StreamUnaryCall[Contact, Created], Bound], Awaitable[None]]
) -> None:
    bound = await serve(batches={"batch_records": 1}, settings={"group_records": 1})
    call = bound.stub.CreateContacts()
    for contact in contacts(5):
        await call.write(contact)
    await bound.sink.stored.wait()
    await leave(call, bound)
    await bound.servicer.ended.wait()
    await bound.sink.rolled_back.wait()
    assert (bound.sink.visible, bound.sink.staged, bound.sink.commits) == ([], {}, 0)


class GoneContext:
    """The context of a call that was cancelled, before its task has heard of it."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def send_initial_metadata(self, _: object) -> None:
        raise grpc.aio.InternalError("the batch has failed")

    async def abort(self, *_: object) -> None:
        raise grpc.aio.InternalError("the batch has failed")


async def test_the_end_of_a_cancelled_call_is_never_taken_for_a_half_close(serve: Serve) -> None:
    """The messages of a call end in the same way when it is cancelled, a few turns of the loop before its task is."""

    async def requests() -> AsyncIterator[Contact]:
        yield Contact(full_name="x")

    bound = await serve()
    context: Any = GoneContext()
    with pytest.raises(asyncio.CancelledError):
        await BulkMethods(bound.manager).receive("things", requests(), context)
    await bound.sink.rolled_back.wait()
    assert (bound.sink.visible, bound.sink.staged, bound.sink.commits) == ([], {}, 0)


@pytest.mark.parametrize("sent", range(20))
async def test_cancelled_calls_never_commit(serve: Serve, sent: int) -> None:
    came = asyncio.Event()

    async def receive(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
        came.set()
        return await plainly(bulks, requests, context)

    bound = await serve(receive)
    call = bound.stub.CreateContacts()
    for contact in contacts(sent):
        await call.write(contact)
    await came.wait()
    call.cancel()
    await bound.servicer.ended.wait()
    assert (bound.sink.visible, bound.sink.commits) == ([], 0)


async def test_a_missed_deadline_of_the_client_leaves_nothing(serve: Serve) -> None:
    bound = await serve(batches={"batch_records": 1}, settings={"group_records": 1})
    # The time is for the call, and not for its connection.
    await bound.channel.channel_ready()
    call = bound.stub.CreateContacts(timeout=1.0)
    await call.write(Contact(full_name="x"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await bound.servicer.ended.wait()
    await bound.sink.rolled_back.wait()
    assert (bound.sink.visible, bound.sink.staged) == ([], {})


async def test_bad_records_end_the_call_while_the_client_is_sending(serve: Serve) -> None:
    async def receive(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
        await bulks.receive("things", requests, context, content=lambda contact: contact.full_name.encode())
        raise AssertionError("a bad record was accepted")

    bound = await serve(receive, batches={"batch_records": 2})
    call = bound.stub.CreateContacts()
    for name in ("{}", "{"):
        await call.write(Contact(full_name=name))
    # It has not half-closed.
    error = await error_of(call)
    assert isinstance(error, BulkRefused)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [(problem.index, problem.kind) for problem in record_problems(error)] == [(1, ProblemKind.INVALID)]
    await bound.sink.rolled_back.wait()
    assert (bound.sink.visible, bound.sink.staged) == ([], {})


async def test_all_bad_records_are_told_where_that_is_wanted(serve: Serve) -> None:
    async def receive(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
        await bulks.receive(
            "things",
            requests,
            context,
            content=lambda contact: contact.full_name.encode(),
            reporting=Reporting.ALL,
        )
        raise AssertionError("bad records were accepted")

    bound = await serve(receive)
    error = await error_of(bound.call(*(Contact(full_name=name) for name in ("{}", "{", "{}", "7"))))
    assert isinstance(error, BulkRefused)
    assert (error.total, [problem.index for problem in record_problems(error)]) == (2, [1, 3])


async def test_a_bulk_without_records_is_refused(serve: Serve) -> None:
    bound = await serve()
    error = await error_of(bound.call())
    assert isinstance(error, BulkRefused)
    assert error.total == 0


async def test_names_and_priorities_are_checked(serve: Serve) -> None:
    async def unknown(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
        await bulks.receive("nothing", requests, context)
        raise AssertionError("there is no such collection")

    async def urgent(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
        await bulks.receive("things", requests, context, priority=1)
        raise AssertionError("a collection has no priorities")

    assert isinstance(await error_of((await serve(unknown)).call(*contacts(1))), RecordEndNotFound)
    assert isinstance(await error_of((await serve(urgent)).call(*contacts(1))), InvalidArgument)


async def test_too_large_a_record_is_refused(serve: Serve) -> None:
    bound = await serve(settings={"max_record_size": 1000})
    error = await error_of(bound.call(Contact(full_name="x" * 1000)))
    assert isinstance(error, QuotaExceeded)
    assert (error.limit, error.maximum) == ("bytes per record", 1000)
    assert bound.sink.visible == []


async def test_a_slow_sink_slows_the_client_and_loses_nothing(serve: Serve) -> None:
    bound = await serve(settings={"max_record_size": 1000, "bulk_window": 4096, "group_records": 3})
    bound.sink.may_stage.clear()
    call = bound.call(*contacts(1000))
    await bound.sink.staging.wait()
    # All that the window has room for is with the server, and the rest is not.
    assert not call.done()
    bound.sink.may_stage.set()
    assert (await call).count == 1000
    assert [json.loads(data)["age"] for data, _ in bound.sink.visible] == list(range(1000))
    assert max(bound.sink.groups) <= 3


async def test_a_record_waits_for_others_no_longer_than_said(serve: Serve) -> None:
    bound = await serve(batches={"batch_records": 8192, "batch_seconds": 0.0}, settings={"group_seconds": 0.0})
    call = bound.stub.CreateContacts()
    await call.write(Contact(full_name="x"))
    # It is staged while the client has not said that it is the last one.
    await bound.sink.stored.wait()
    await call.write(Contact(full_name="y"))
    await call.done_writing()
    assert (await call).count == 2


async def test_records_wait_for_no_more_than_a_batch(serve: Serve) -> None:
    bound = await serve(batches={"batch_records": 2, "batch_seconds": 1e6}, settings={"group_seconds": 0.0})
    call = bound.stub.CreateContacts()
    for contact in contacts(2):
        await call.write(contact)
    await bound.sink.stored.wait()
    for contact in contacts(3):
        await call.write(contact)
    await call.done_writing()
    assert (await call).count == 5


async def test_malformed_messages_are_refused(serve: Serve) -> None:
    bound = await serve()
    method: Any = bound.channel.stream_unary("/acme.contacts.Contacts/CreateContacts")
    error = await error_of(method(iter([Contact(full_name="x").SerializeToString(), b"\xff\xff"])))
    assert isinstance(error, ProtocolError)
    assert "malformed" in error.message
    await bound.sink.rolled_back.wait()
    assert bound.sink.visible == []


async def test_refusals_of_the_method_travel_as_they_are(serve: Serve) -> None:
    problem = RecordProblem(index=0, kind=ProblemKind.INVALID, field="age", problem="too young")

    def refuse(contact: Contact) -> bytes:
        raise refused_records([problem], 1)

    async def receive(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
        await bulks.receive("things", requests, context, content=refuse)
        raise AssertionError("a refused record was accepted")

    bound = await serve(receive)
    error = await error_of(bound.call(*contacts(3)))
    assert isinstance(error, BulkRefused)
    assert record_problems(error) == (problem,)
    assert bound.sink.visible == []


class Badge(Authenticator):
    """Knows one token, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    @property
    def anonymous(self) -> bool:
        return False

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    async def authenticate(self, credentials: Credentials) -> Principal:
        self.asked += 1
        if credentials.token != "mara":
            raise Unauthenticated("no such token")
        return Principal(name="mara")


class OnlyOthers(Authorizer):
    """Lets nobody use records."""

    async def authorize(
        self, principal: Principal, operation: Operation, *, context: str | None, id: str | None
    ) -> None:
        assert (operation, id) == (Operation.RECORDS, "things")
        raise PermissionDenied(f"{principal.name} may not")


async def test_the_caller_is_looked_at_once_and_before_its_messages(serve: Serve) -> None:
    badge = Badge()
    bound = await serve(authenticator=badge)
    call = bound.stub.CreateContacts()
    error = await error_of(call)
    assert isinstance(error, Unauthenticated)
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
    assert bound.sink.origins == []
    badge.asked = 0
    created = await bound.call(*contacts(2000), metadata=(("authorization", "Bearer mara"),))
    assert (created.count, badge.asked) == (2000, 1)
    assert [origin.principal for origin in bound.sink.origins] == ["mara"]


async def test_who_may_not_use_the_collection_is_told(serve: Serve) -> None:
    bound = await serve(authenticator=Badge(), authorizer=OnlyOthers())
    error = await error_of(bound.call(*contacts(1), metadata=(("authorization", "Bearer mara"),)))
    assert isinstance(error, PermissionDenied)
    assert bound.sink.origins == []


async def test_a_manager_that_closes_ends_bulks_that_are_open(serve: Serve) -> None:
    bound = await serve(batches={"batch_records": 1}, settings={"group_records": 1})
    call = bound.stub.CreateContacts()
    await call.write(Contact(full_name="x"))
    await bound.sink.stored.wait()
    closing = asyncio.ensure_future(bound.manager.close())  # type: ignore[attr-defined]  # that of this package's tests
    error = await error_of(call)
    assert isinstance(error, GoingAway)
    assert error.retry_after > 0
    await closing
    assert bound.sink.visible == []


@pytest.mark.parametrize("options", [{"batch_records": 0}, {"batch_records": 8193}, {"batch_seconds": -1.0}])
async def test_impossible_batches_are_refused(serve: Serve, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        await serve(batches=options)


def test_json_of_a_message_has_the_names_of_its_proto_file() -> None:
    data = json_of(Contact(full_name="ü", email="e"))
    assert json.loads(data) == {"full_name": "ü", "age": 0, "phones": [], "email": "e"}
    assert '"ü"'.encode() in data
    assert b" " not in data


@pytest.mark.usefixtures("no_task_is_left")
class TestDefects:
    """What goes wrong here is told as that, and logged."""

    @pytest.fixture(autouse=True)
    def nothing_is_logged_as_an_error(self, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
        """Errors are what is logged in these."""
        return caplog

    async def test_content_that_is_none_is_a_defect(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        async def receive(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
            wrong: Any = lambda contact: contact.full_name  # noqa: E731 - a str is neither
            await bulks.receive("things", requests, context, content=wrong)
            raise AssertionError("text was accepted")

        bound = await serve(receive)
        error = await error_of(bound.call(*contacts(1)))
        assert isinstance(error, InternalError)
        assert "str is neither" not in error.message
        assert "str is neither a message nor bytes" in caplog.text
        assert bound.sink.visible == []

    async def test_metadata_must_not_have_been_sent(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        async def receive(bulks: BulkMethods, requests: AsyncIterator[Contact], context: Any) -> Created:
            await context.send_initial_metadata(())
            return await plainly(bulks, requests, context)

        bound = await serve(receive)
        error = await error_of(bound.call(*contacts(1)))
        assert isinstance(error, InternalError)
        assert "initial metadata" in caplog.text
        assert bound.sink.visible == []
