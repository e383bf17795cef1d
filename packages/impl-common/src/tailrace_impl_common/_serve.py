"""The server's side of every conversation, above the transports and in front of the manager."""

from __future__ import annotations

import logging
from contextlib import aclosing

from tailrace_common_api import InternalError, Page, Position, ProtocolError, TailraceError
from tailrace_impl_common._serve_download import serve_download
from tailrace_impl_common._serve_upload import serve_upload
from tailrace_impl_common._statuses import status_under
from tailrace_impl_common._streams import ServerStream
from tailrace_impl_common.messages import (
    Delete,
    Done,
    Follow,
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
    Watched,
)
from tailrace_server_api import ResourceManager

logger = logging.getLogger(__name__)


async def serve_conversation(
    request: Request, stream: ServerStream, *, manager: ResourceManager, base: str, chunk_size: int, principal: str = ""
) -> None:
    """Drive one streaming conversation to its end.

    Cancelling it means that the client is gone: an upload's grace period then begins.

    Args:
        request: First message of the conversation.
        stream: The rest of it.
        manager: Resources of the server.
        base: Public base URL of the transport, for references.
        chunk_size: Largest chunk to send to a reader, in bytes.
        principal: Who asks; empty without authentication.

    Raises:
        TailraceError: What to tell the client. A defect is logged and becomes an ``InternalError``.
    """
    try:
        match request:
            case OpenUpload() | ReopenUpload():
                await serve_upload(request, stream, manager=manager, base=base, principal=principal)
            case Read() | Follow() | ReadLines():
                await serve_download(request, stream, manager=manager, base=base, chunk_size=chunk_size)
            case Watch():
                await _serve_watch(request, stream, manager=manager, base=base)
            case _:
                raise ProtocolError(f"{type(request).__name__} does not begin a stream")
    except TailraceError:
        raise
    except Exception as exc:
        raise _defect(request, exc) from exc


async def answer_request(
    request: UnaryRequest, *, manager: ResourceManager, base: str, principal: str = ""
) -> UnaryAnswer:
    """Answer a unary request; arguments and errors as for :func:`serve_conversation`."""
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
            case _:
                raise ProtocolError(f"{type(request).__name__} has no single answer")
    except TailraceError:
        raise
    except Exception as exc:
        raise _defect(request, exc) from exc


async def _locate(request: Locate, manager: ResourceManager) -> Located:
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


async def _serve_watch(request: Watch, stream: ServerStream, *, manager: ResourceManager, base: str) -> None:
    async with aclosing(manager.statuses(request.id, token=request.token)) as statuses:
        async for status in statuses:
            await stream.send(status_under(status, base))
    await stream.send(Watched())


def _defect(request: Request, exc: Exception) -> InternalError:
    """Log a defect with all that is known of it, and tell the client no more than that there was one."""
    logger.error("%s failed", type(request).__name__, exc_info=exc, extra={"resource": getattr(request, "id", None)})
    return InternalError(f"{type(request).__name__} failed; the server's log says why")
