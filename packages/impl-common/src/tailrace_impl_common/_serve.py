"""The server's side of every conversation, above the transports and in front of the manager."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import aclosing
from types import MappingProxyType, TracebackType

from tailrace_common_api import InternalError, Page, Position, ProtocolError, TailraceError
from tailrace_impl_common._endpoint import Endpoint
from tailrace_impl_common._request_log import log_failure
from tailrace_impl_common._serve_bulk import serve_bulk
from tailrace_impl_common._serve_download import serve_download
from tailrace_impl_common._serve_query import serve_query
from tailrace_impl_common._serve_upload import serve_upload
from tailrace_impl_common._serve_work import serve_work
from tailrace_impl_common._statuses import status_under
from tailrace_impl_common._streams import ServerStream
from tailrace_impl_common._tracing import traced
from tailrace_impl_common.messages import (
    CloseContext,
    CreateContext,
    Delete,
    Done,
    Follow,
    GetContext,
    GetHeads,
    GetStatus,
    Heads,
    List,
    Listed,
    Locate,
    Located,
    OpenUpload,
    Read,
    ReadLines,
    ReopenUpload,
    Request,
    UnaryAnswer,
    UnaryRequest,
    Watch,
    WatchContext,
    Watched,
)
from tailrace_impl_common.record_messages import GetQueue, OpenBulk, Query, Work
from tailrace_server_api import RequestTelemetry, ResourceService

logger = logging.getLogger(__name__)

_NO_TRACE: Mapping[str, str] = MappingProxyType({})


async def serve_conversation(
    request: Request,
    stream: ServerStream,
    *,
    service: ResourceService,
    endpoint: Endpoint,
    trace: Mapping[str, str] = _NO_TRACE,
) -> None:
    """Drive one streaming conversation to its end.

    Cancelling it means that the client is gone: an upload's grace period then begins.

    Args:
        request: First message of the conversation.
        stream: The rest of it.
        service: Resources of the server, as the caller may use them.
        endpoint: The transport that carries the conversation.
        trace: Trace context of the caller, as in the headers of W3C Trace Context; empty for none.

    Raises:
        TailraceError: What to tell the client. A defect is logged and becomes an ``InternalError``.
    """
    with _Seen(request, endpoint, trace) as telemetry:
        try:
            match request:
                case OpenUpload() | ReopenUpload():
                    await serve_upload(request, stream, service=service, base=endpoint.base, telemetry=telemetry)
                case Read() | Follow() | ReadLines():
                    await serve_download(request, stream, service=service, endpoint=endpoint, telemetry=telemetry)
                case Watch():
                    await _serve_watch(request, stream, service=service, base=endpoint.base)
                case WatchContext():
                    await _serve_context_events(request, stream, service=service)
                case OpenBulk():
                    await serve_bulk(request, stream, service=service, telemetry=telemetry)
                case Query():
                    await serve_query(request, stream, service=service, telemetry=telemetry)
                case Work():
                    await serve_work(request, stream, service=service, telemetry=telemetry)
                case _:
                    raise ProtocolError(f"{type(request).__name__} does not begin a stream")
        except TailraceError:
            raise
        except Exception as exc:
            raise _defect(request, exc) from exc


async def answer_request(
    request: UnaryRequest, *, service: ResourceService, endpoint: Endpoint, trace: Mapping[str, str] = _NO_TRACE
) -> UnaryAnswer:
    """Answer a unary request; arguments and errors as for :func:`serve_conversation`."""
    with _Seen(request, endpoint, trace):
        return await _answer(request, service, endpoint.base)


class _Seen:
    """Serve a request within the block: it is counted, traced, and logged once if it fails.

    A class, because each request is in one for as long as it runs, and there are thousands of followers.
    """

    __slots__ = ("_request", "_span", "_telemetry")

    def __init__(self, request: Request | UnaryRequest, endpoint: Endpoint, trace: Mapping[str, str]) -> None:
        operation = type(request).__name__
        self._request = request
        self._span = traced(operation, trace, transport=endpoint.transport)
        self._telemetry = endpoint.telemetry.request(endpoint.transport, operation)

    def __enter__(self) -> RequestTelemetry:
        self._span.__enter__()
        try:
            return self._telemetry.__enter__()
        except BaseException as error:
            self._span.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What is internal was logged where it was met, with all that is known of it.
        if isinstance(exc, TailraceError) and not isinstance(exc, InternalError):
            log_failure(type(self._request).__name__, exc, resource=getattr(self._request, "id", None))
        try:
            self._telemetry.__exit__(exc_type, exc, traceback)
        finally:
            self._span.__exit__(exc_type, exc, traceback)


async def _answer(request: UnaryRequest, manager: ResourceService, base: str) -> UnaryAnswer:
    try:
        match request:
            case GetStatus():
                reader = await manager.open_reader(request.id, token=request.token)
                try:
                    return status_under(reader.status(), base)
                finally:
                    reader.close()
            case GetHeads():
                return Heads(await manager.heads(request.id, request.sizes, token=request.token))
            case Locate():
                return await _locate(request, manager)
            case List():
                page = await manager.list(request.filter, limit=request.limit, page_token=request.page_token)
                return Listed(Page(tuple(status_under(status, base) for status in page.statuses), page.next_token))
            case Delete():
                await manager.delete(request.id, token=request.token)
                return Done()
            case CreateContext():
                return await manager.create_context(request.attributes)
            case GetContext():
                return await manager.get_context(request.id)
            case CloseContext():
                return await manager.close_context(request.id)
            case GetQueue():
                return await manager.records.queue_figures(request.queue)
            case _:
                raise ProtocolError(f"{type(request).__name__} has no single answer")
    except TailraceError:
        raise
    except Exception as exc:
        raise _defect(request, exc) from exc


async def _locate(request: Locate, manager: ResourceService) -> Located:
    reader = await manager.open_reader(request.id, token=request.token)
    try:
        snapshot = reader.snapshot
        if request.line is not None:
            offset = await reader.line_offset(request.line, snapshot)
            return Located(Position(request.line, offset))
        assert request.offset is not None
        return Located(await reader.line_at(request.offset, snapshot))
    finally:
        reader.close()


async def _serve_watch(request: Watch, stream: ServerStream, *, service: ResourceService, base: str) -> None:
    async with aclosing(service.statuses(request.id, token=request.token)) as statuses:
        async for status in statuses:
            await stream.send(status_under(status, base))
    await stream.send(Watched())


async def _serve_context_events(request: WatchContext, stream: ServerStream, *, service: ResourceService) -> None:
    async with aclosing(service.context_events(request.id, after=request.after)) as events:
        async for event in events:
            await stream.send(event)
    await stream.send(Watched())


def _defect(request: Request, exc: Exception) -> InternalError:
    """Log a defect with all that is known of it, and tell the client no more than that there was one."""
    logger.error("%s failed", type(request).__name__, exc_info=exc, extra={"resource": getattr(request, "id", None)})
    return InternalError(f"{type(request).__name__} failed; the server's log says why")
