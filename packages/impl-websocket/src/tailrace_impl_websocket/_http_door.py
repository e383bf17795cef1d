"""Reading over plain HTTP: enough for curl and a browser tab.

=======================  ===========================================================================================
request                  answer
=======================  ===========================================================================================
``GET /r/ID``            all that is announced, or a range of it (RFC 9110, section 14)
``GET /r/ID?follow``     what is announced, and then what is added, until the resource ends; ``&from=N`` starts at N,
                         and so does ``Range: bytes=N-`` (answered as RFC 8673 has it)
``GET /r/ID?lines=A:B``  the lines [A, B); either may be missing
``HEAD``                 the same without the bytes
=======================  ===========================================================================================

A response that cannot be completed (the resource failed under a follower, was deleted, or is damaged) is cut off, so
that the client sees an error and not an end. What a resource holds is never trusted: it cannot run scripts in the
origin of this server, and browsers keep to its declared type.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, quote

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from tailrace_common_api import (
    MAX_OFFSET,
    InvalidArgument,
    LineRangeNotSatisfiable,
    RangeNotSatisfiable,
    ResourceFailed,
    ResourceState,
    Status,
    TailraceError,
    Unsupported,
)
from tailrace_impl_common import counted_refusals, log_failure, traced
from tailrace_impl_websocket._credentials import credentials_of
from tailrace_impl_websocket._http_bodies import ABORT_EXTENSION, Bodies
from tailrace_impl_websocket._places import Places
from tailrace_impl_websocket._refusal import send_error, send_start
from tailrace_impl_websocket._server_streams import ServerContext
from tailrace_server_api import Buffer, RequestTelemetry, ResourceReader, ResourceService, Snapshot

_RANGE = re.compile(r"bytes=[ \t]*(?:(\d{1,1000})-(\d{0,1000})|-(\d{1,1000}))[ \t]*\Z", re.ASCII | re.IGNORECASE)
_DIGITS = re.compile(r"[0-9]{1,16}\Z")
_LINES = re.compile(r"([0-9]{0,16}):([0-9]{0,16})\Z")
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_FALSE = frozenset({"0", "false", "no"})
_UNSAFE_IN_NAME = re.compile(r'[^\x20-\x7e]|["\\/%]')
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]+\Z")


@dataclass(frozen=True, slots=True)
class _Query:
    """What the query string asks for."""

    follow: bool = False
    start: int | None = None
    lines: tuple[int, int | None] | None = None


@dataclass(frozen=True, slots=True)
class _Selection:
    """What will be sent."""

    start: int
    end: int | None
    """``None``: to wherever the resource ends."""
    http_status: int = 200
    content_range: str | None = None


class HttpDoor:
    """The ASGI application behind ``/r/{id}``."""

    def __init__(self, context: ServerContext, places: Places, bodies: Bodies) -> None:
        """Read from the manager of ``context``; each request takes one of ``places``, each answer is of ``bodies``."""
        self._context = context
        self._endpoint = replace(context.endpoint, transport="http")
        self._places = places
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with self._places.place() as place:
            send = place.until_answered(send)
            try:
                if scope["method"] not in ("GET", "HEAD"):
                    await send_error(send, Unsupported("only GET and HEAD are supported here"), http_status=405)
                    return
                credentials = credentials_of(scope)
                with counted_refusals(self._endpoint, credentials.peer):
                    self._bodies.admit()
                    place.take()
                    self._context.manager.admit()
                    service = await self._context.manager.authenticate(credentials)
                query = _parse_query(scope["query_string"])
            except TailraceError as error:
                await send_error(send, error)
                return
            await self._serve(scope, receive, send, query, service)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, query: _Query, service: ResourceService) -> None:
        """Answer a request that was let in; it is counted, traced, and logged if it fails."""
        id_, endpoint = scope["path_params"]["id"], self._endpoint
        operation = "Follow" if query.follow else "Read" if query.lines is None else "ReadLines"
        headers = Headers(scope=scope)
        trace = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        cut_off: BaseException | None = None
        try:
            with (
                traced(operation, trace, transport=endpoint.transport),
                endpoint.telemetry.request(endpoint.transport, operation) as telemetry,
            ):
                reader = await service.open_reader(id_)
                try:
                    cut_off = await self._answer(scope, receive, send, reader, query, telemetry)
                finally:
                    reader.close()
                if cut_off is not None:
                    raise cut_off
        except TailraceError as error:
            log_failure(operation, error, resource=id_)
            if error is not cut_off:
                await send_error(send, error)
        except Exception as error:
            if error is not cut_off:
                raise

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        reader: ResourceReader,
        query: _Query,
        telemetry: RequestTelemetry,
    ) -> BaseException | None:
        """Send the answer; return why it was cut off behind its headers, if it was."""
        # Taken together, without waiting between: they describe the same version.
        snapshot, status = reader.snapshot, reader.status()
        request = Headers(scope=scope)
        headers = _describe(status)
        sealed = snapshot.state.terminal
        tag = f'"{snapshot.head.hex()}"'
        open_ended = query.follow and snapshot.state is not ResourceState.COMPLETED
        if sealed and not open_ended:
            headers["etag"] = tag
            if _matches(request.getlist("if-none-match"), tag):
                await send_start(send, 304, headers)
                await send({"type": "http.response.body", "body": b""})
                return None
        range_header = request.get("range") if scope["method"] == "GET" else None
        if request.get("if-range", tag) != tag or ("if-range" in request and not sealed):
            range_header = None
        selection = await _select(reader, snapshot, query, range_header)
        if selection.content_range is not None:
            headers["content-range"] = selection.content_range
        if query.lines is None:
            headers["accept-ranges"] = "bytes"
        if selection.end is not None:
            headers["content-length"] = str(selection.end - selection.start)
        await send_start(send, selection.http_status, headers)
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return None
        as_it_is = ABORT_EXTENSION in scope.get("extensions", {})
        pieces = _pieces(reader, selection, self._context.endpoint.chunk_size, as_it_is=as_it_is)
        body = _copy(pieces, send, telemetry)
        return await self._bodies.send(scope, receive, body, endless=selection.end is None)


async def _copy(pieces: AsyncGenerator[Buffer, None], send: Send, telemetry: RequestTelemetry) -> None:
    # A server may hold the headers back for the first byte, which a follower may have to wait for.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    async with aclosing(pieces):
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            telemetry.sent(len(piece))
            # A buffer lives as long as the slowest reader holds it; those who wait for the next one hold none.
            del piece
            # A server that takes everything at once must not keep other tasks from running.
            await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


async def _pieces(
    reader: ResourceReader, selection: _Selection, size: int, *, as_it_is: bool
) -> AsyncGenerator[Buffer, None]:
    """Yield what was selected, in pieces of at most ``size`` bytes.

    Raises:
        ResourceFailed: A follower got to the end of a resource that failed.
        TailraceError: As for :meth:`ResourceReader.read`.
    """
    offset = selection.start
    while True:
        snapshot = reader.snapshot
        end = snapshot.size if selection.end is None else selection.end
        while offset < end:
            until = min(end, offset + size)
            piece = reader.try_read(offset, until) or await reader.read(offset, until)
            offset += len(piece.data)
            # Other servers take bytes, as ASGI says; our own takes the buffer that the piece was read into.
            yield piece.data if as_it_is or isinstance(piece.data, bytes) else bytes(piece.data)
            del piece
        if selection.end is not None:
            return
        if snapshot.state is ResourceState.FAILED:
            raise ResourceFailed(id=reader.id, reason=snapshot.reason or "", size=snapshot.size)
        if snapshot.state.terminal:
            return
        await reader.changed(snapshot.version)


# What is asked for


def _parse_query(query_string: bytes) -> _Query:
    """Read the parameters that mean something here; others are ignored.

    Raises:
        InvalidArgument: One has a value that it cannot have, or they contradict each other.
    """
    values = dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
    follow = "follow" in values and values["follow"].lower() not in _FALSE
    start = values.get("from")
    lines = values.get("lines")
    if start is not None:
        if not follow:
            raise InvalidArgument(field="from", problem="only with follow")
        if not _DIGITS.match(start) or int(start) > MAX_OFFSET:
            raise InvalidArgument(field="from", problem=f"{start[:40]!a} is not an offset")
    if lines is None:
        return _Query(follow, None if start is None else int(start))
    if follow:
        raise InvalidArgument(field="lines", problem="not together with follow")
    match = _LINES.match(lines)
    if match is None:
        raise InvalidArgument(field="lines", problem=f"{lines[:40]!a} is not FIRST:END")
    return _Query(lines=(int(match[1] or 0), int(match[2]) if match[2] else None))


async def _select(reader: ResourceReader, snapshot: Snapshot, query: _Query, range_header: str | None) -> _Selection:
    """Resolve a request against the announced state.

    Raises:
        RangeNotSatisfiable, LineRangeNotSatisfiable, LineAccessDisabled: There is nothing there.
    """
    if query.lines is not None:
        first, end = query.lines
        end = snapshot.lines if end is None else min(end, snapshot.lines)
        start = await reader.line_offset(first, snapshot)
        if query.lines[1] is not None and query.lines[1] < first:
            raise LineRangeNotSatisfiable(first=first, count=query.lines[1] - first, lines=snapshot.lines)
        return _Selection(start, start if end <= first else await reader.line_offset(end, snapshot))
    # A follower of what is complete gets all of it, like everyone else; only a failure needs to be told by the end.
    end_known = not query.follow or snapshot.state is ResourceState.COMPLETED
    if query.start is not None:
        if query.start > snapshot.size:
            raise RangeNotSatisfiable(start=query.start, end=None, size=snapshot.size)
        return _Selection(query.start, snapshot.size if end_known else None)
    return _select_range(range_header, snapshot, growing=not snapshot.state.terminal, end_known=end_known)


def _select_range(range_header: str | None, snapshot: Snapshot, *, growing: bool, end_known: bool) -> _Selection:
    size = snapshot.size
    whole = _Selection(0, size if end_known else None)
    # More than one range, another unit and bad syntax are ignored alike (RFC 9110, section 14.2).
    match = _RANGE.match(range_header) if range_header is not None else None
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        return whole
    if match[3] is not None:
        start, last = max(0, size - int(match[3])), None
        if int(match[3]) == 0:
            raise RangeNotSatisfiable(start=size, end=None, size=size)
        if size == 0:
            return whole
    else:
        start, last = int(match[1]), int(match[2]) if match[2] else None
    if not end_known:
        if last is not None:
            return whole
        if start > size:
            raise RangeNotSatisfiable(start=start, end=None, size=size)
        # The last position of a range that still grows is "a very large value" (RFC 8673, section 2.2).
        return _Selection(start, None, 206, f"bytes {start}-{MAX_OFFSET}/*")
    if start >= size:
        raise RangeNotSatisfiable(start=start, end=None if last is None else last + 1, size=size)
    end = size if last is None else min(last + 1, size)
    return _Selection(start, end, 206, f"bytes {start}-{end - 1}/{'*' if growing else size}")


def _matches(header_values: list[str], tag: str) -> bool:
    """Return whether ``If-None-Match`` names ``tag``, by weak comparison (RFC 9110, section 13.1.2)."""
    return any(
        value.strip() == "*" or any(found == tag for found in _ENTITY_TAG.findall(value)) for value in header_values
    )


# What is answered


def _describe(status: Status) -> dict[str, str]:
    """Return the headers that say what a resource is."""
    metadata = status.metadata
    content_type = metadata.content_type
    fallback = _UNSAFE_IN_NAME.sub("_", metadata.name)
    headers = {
        "content-type": content_type if _CONTENT_TYPE.match(content_type) else "application/octet-stream",
        "content-disposition": f"inline; filename=\"{fallback}\"; filename*=UTF-8''{quote(metadata.name, safe='')}",
        "cache-control": "no-cache" if status.state.terminal else "no-store",
        "x-tailrace-state": status.state.value,
        "x-tailrace-size": str(status.size),
        "x-tailrace-head": status.head.hex(),
    }
    if status.lines is not None:
        headers["x-tailrace-lines"] = str(status.lines)
    return headers
