"""Client-streaming methods of other services, whose messages become the records of a bulk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import Any, Generic, TypeVar

import grpc.aio
from google.protobuf.message import DecodeError, Message

from tailrace_common_api import (
    RECORD_OVERHEAD,
    BulkResult,
    ConnectionLost,
    InternalError,
    InvalidArgument,
    ProtocolError,
    QuotaExceeded,
    Reporting,
    TailraceError,
)
from tailrace_impl_common import (
    BulkSender,
    Endpoint,
    MessageStream,
    Signal,
    cancel_and_wait,
    counted_refusals,
    serve_conversation,
)
from tailrace_impl_common.messages import ClientMessage, ServerMessage
from tailrace_impl_common.record_messages import MESSAGE_BYTES, MESSAGE_RECORDS, BulkOpened, OpenBulk
from tailrace_impl_grpc._call_abort import abort_call
from tailrace_impl_grpc._call_metadata import credentials_of, trace_of
from tailrace_impl_grpc._message_content import content_of
from tailrace_impl_grpc._options import BEST_CHUNK_SIZE
from tailrace_server_api import ResourceManager, ResourceService

logger = logging.getLogger(__name__)

IDEMPOTENCY_KEY = "tailrace-idempotency-key"
"""Name of the metadata entry with which a client may name its bulk: 1 to 255 printable characters of ASCII."""

M = TypeVar("M", bound=Message)

_ServicerContext = grpc.aio.ServicerContext[Any, Any]


class BulkMethods:
    """Binds client-streaming methods of ``grpc.aio`` services to the collections and queues of a server.

    Holds no state of its own: one serves any number of methods and calls, on the event loop of its manager.
    """

    def __init__(self, manager: ResourceManager, *, batch_records: int = 1000, batch_seconds: float = 0.1) -> None:
        """Use the collections and queues of ``manager``.

        Args:
            manager: A manager that has started.
            batch_records: Most records that are handed on together, 1 to 8,192.
            batch_seconds: Longest time that a record waits for others, in seconds.

        Raises:
            InvalidArgument: One of them is outside its bounds.
        """
        if not 1 <= batch_records <= MESSAGE_RECORDS:
            raise InvalidArgument(
                field="batch_records", problem=f"{batch_records} is not within 1 and {MESSAGE_RECORDS}"
            )
        if not batch_seconds >= 0:
            raise InvalidArgument(field="batch_seconds", problem=f"{batch_seconds:g} is no time")
        self._manager = manager
        self._batch_records = batch_records
        self._batch_seconds = batch_seconds
        self._endpoint = Endpoint(transport="grpc", base="", chunk_size=BEST_CHUNK_SIZE, telemetry=manager.telemetry)

    async def receive(
        self,
        collection: str,
        requests: AsyncIterable[M],
        context: grpc.aio.ServicerContext[Any, Any],
        *,
        content: Callable[[M], Message | bytes] | None = None,
        record_key: Callable[[M], str | None] | None = None,
        reporting: Reporting = Reporting.FIRST,
        priority: int = 0,
    ) -> BulkResult:
        """Take the messages of a call as one bulk, and return its result for the method's response.

        The caller is who the metadata of the call says, as on this package's own server. Everything becomes visible at
        once when the client half-closes; when it cancels, is lost or misses its deadline, or anything fails, nothing
        does. Where the call has a metadata entry ``tailrace-idempotency-key`` and a bulk with that key has committed,
        its result is returned at once, with ``repeated`` set, and the messages are not looked at.

        A message becomes JSON (see :func:`json_of`) where the collection's content type says so, and its own serialised
        bytes everywhere else.

        Args:
            collection: Name of the collection or queue.
            requests: The first argument of the method.
            context: The second argument of the method. Its initial metadata must not have been sent; it is from here.
            content: Makes the record of a message: another message, or bytes that are taken as they are. ``None``: the
                message itself.
            record_key: Gives the key of a message's record. ``None``: records have no keys.
            reporting: Which problems are told when records cannot be accepted.
            priority: Priority of all records, for a queue.

        Raises:
            grpc.aio.AbortError: The call has failed, and was ended with the status and the ``tailrace-error-bin`` of
                this package's own methods; to be left to the library.
            asyncio.CancelledError: The call was cancelled, or its client is gone.
        """
        error: TailraceError
        try:
            service, key = await self._admit(context)
            request = OpenBulk(collection=collection, idempotency_key=key, reporting=reporting, priority=priority)
            stream = _MethodStream(
                requests,
                context,
                content=content,
                record_key=record_key,
                batch_records=self._batch_records,
                batch_seconds=self._batch_seconds,
            )
            return await stream.run(request, service, self._endpoint)
        except TailraceError as exc:
            error = exc
        except Exception:
            logger.exception("a bulk failed")
            error = InternalError("the bulk failed; the server's log says why")
        try:
            await abort_call(context, error)
        finally:
            # Its traceback holds this frame, and that the call.
            del error
        # Nobody is there to be told, and no result is to be given for a bulk that was rolled back.
        raise asyncio.CancelledError

    async def _admit(self, context: _ServicerContext) -> tuple[ResourceService, str | None]:
        credentials = credentials_of(context)
        with counted_refusals(self._endpoint, credentials.peer):
            self._manager.admit()
            service = await self._manager.authenticate(credentials)
        return service, _idempotency_key(context)


class _MethodStream(MessageStream[ServerMessage, ClientMessage], Generic[M]):
    """The conversation of a bulk, as if the client had had it: a task makes records of the messages of the call."""

    def __init__(
        self,
        requests: AsyncIterable[M],
        context: _ServicerContext,
        *,
        content: Callable[[M], Message | bytes] | None,
        record_key: Callable[[M], str | None] | None,
        batch_records: int,
        batch_seconds: float,
    ) -> None:
        self._requests = requests
        self._context = context
        self._content = content
        self._record_key = record_key
        self._batch_records = batch_records
        self._batch_seconds = batch_seconds
        self._machine = BulkSender()
        self._reading: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        """Whether what is gathered waits for nothing but room in the window."""
        self._changed = Signal()

    async def run(self, request: OpenBulk, service: ResourceService, endpoint: Endpoint) -> BulkResult:
        """Have the conversation and return the result of the bulk."""
        try:
            await serve_conversation(request, self, service=service, endpoint=endpoint, trace=trace_of(self._context))
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._reading is not None:
                await cancel_and_wait(self._reading)
        result = self._machine.result
        assert result is not None
        return result

    async def send(self, message: ServerMessage) -> None:
        self._machine.receive(message)
        if isinstance(message, BulkOpened) and message.result is None:
            self._reading = asyncio.create_task(self._read(message), name="tailrace-bulk-method")
            self._reading.add_done_callback(self._read_ended)
        self._changed.notify()

    async def receive(self) -> ClientMessage | None:
        reading = self._reading
        assert reading is not None
        while True:
            if reading.done():
                # What has failed ends the bulk, whatever came before it.
                reading.result()
            if self._due and (batch := self._machine.next_message()) is not None:
                # The rest of what was gathered, if there is any, waits for the window.
                self._due = bool(self._machine.data) or reading.done()
                self._stop_timer()
                self._changed.notify()
                return batch
            if reading.done() and not self._machine.data:
                return self._machine.commit()
            await self._changed.wait()

    async def _read(self, opened: BulkOpened) -> None:
        """Gather records until the client half-closes."""
        machine, content_type, largest = self._machine, opened.content_type, opened.limits.record_bytes
        content, record_key = self._content, self._record_key
        async for message in self._messages():
            data = content_of(message if content is None else content(message), content_type)
            key = None if record_key is None else record_key(message) or None
            size = len(data) + (len(key.encode()) if key is not None else 0)
            if size > largest:
                raise QuotaExceeded(limit="bytes per record", maximum=largest, actual=size)
            machine.add(data, key, size + RECORD_OVERHEAD)
            if len(machine.data) >= self._batch_records or machine.gathered >= MESSAGE_BYTES:
                self._hand_on()
                while len(machine.data) >= self._batch_records or machine.gathered >= MESSAGE_BYTES:
                    await self._changed.wait()
            elif self._timer is None and not self._due:
                self._timer = asyncio.get_running_loop().call_later(self._batch_seconds, self._hand_on)

    async def _messages(self) -> AsyncGenerator[M, None]:
        """Yield the messages of the call.

        Raises:
            ConnectionLost: It has ended otherwise than by the client's half-close.
            ProtocolError: A message is malformed.
        """
        requests = aiter(self._requests)
        while True:
            try:
                message = await anext(requests)
            except StopAsyncIteration:
                break
            except grpc.aio.BaseError:
                raise ConnectionLost("the client is gone") from None
            except DecodeError as exc:
                raise ProtocolError(f"a malformed message: {exc}") from None
            yield message
        await self._check_half_closed()

    async def _check_half_closed(self) -> None:
        """Make sure that the messages have ended because the client has half-closed.

        They end in the same way when a call is cancelled or its connection is lost, and the cancellation of its task
        may come later. But then nothing can be sent any more.

        Raises:
            ConnectionLost: It has not.
        """
        try:
            await self._context.send_initial_metadata(())
        except grpc.aio.BaseError as exc:
            if isinstance(exc, grpc.aio.UsageError) and "already sent" in str(exc):
                raise RuntimeError("the initial metadata of a bulk's call was sent before the bulk ended") from None
            raise ConnectionLost("the client is gone") from None

    def _hand_on(self) -> None:
        self._stop_timer()
        self._due = True
        self._changed.notify()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read_ended(self, _: asyncio.Task[None]) -> None:
        self._hand_on()


def _idempotency_key(context: _ServicerContext) -> str | None:
    """Return the idempotency key in the metadata of a call.

    Raises:
        InvalidArgument: There are several, or it is no text.
    """
    found = [value for key, value in context.invocation_metadata() or () if key == IDEMPOTENCY_KEY]
    if len(found) > 1 or not all(isinstance(value, str) for value in found):
        raise InvalidArgument(field="idempotency_key", problem=f"{len(found)} entries {IDEMPOTENCY_KEY}")
    return str(found[0]) if found else None
