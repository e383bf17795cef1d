"""Results over plain HTTP: a record a line, as they are produced, for curl and everything that reads lines.

``GET /query/NAME?k=v&…`` is answered with the records of the source of this name, for these arguments. Records of JSON
come as ``application/x-ndjson``, those of text as ``text/plain``; sources of anything else are refused. Keys are left
out.

What goes wrong before the first record is an answer of its own, with a status. Behind it the response is cut off, so
that the client sees an error and not an end. Nothing is said in its last line: who reads records would take that for
one.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from tailrace_common_api import (
    InternalError,
    InvalidArgument,
    QueryFailed,
    TailraceError,
    Unsupported,
    check_arguments,
)
from tailrace_impl_common import counted_refusals, log_failure, traced
from tailrace_impl_websocket._credentials import credentials_of
from tailrace_impl_websocket._http_bodies import Bodies, ResponseAborted
from tailrace_impl_websocket._places import Places
from tailrace_impl_websocket._refusal import send_error, send_start
from tailrace_impl_websocket._server_streams import ServerContext
from tailrace_server_api import RequestTelemetry, ResourceService

logger = logging.getLogger(__name__)

_OPERATION = "Query"
_MOST_PARAMETERS = 64
_JSON = re.compile(r"application/(?:[^;\s]*\+)?json\s*(?:;|\Z)", re.IGNORECASE)
_TEXT = re.compile(r"text/", re.IGNORECASE)
_LINE_ENDS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")


class QueryDoor:
    """The ASGI application behind ``/query/{name}``."""

    def __init__(self, context: ServerContext, places: Places, bodies: Bodies) -> None:
        """Query the manager of ``context``; each request takes one of ``places``, each answer is of ``bodies``."""
        self._context = context
        self._endpoint = replace(context.endpoint, transport="http")
        self._places = places
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with self._places.place() as place:
            send = place.until_answered(send)
            try:
                if scope["method"] != "GET":
                    await send_error(send, Unsupported("only GET is supported here"), http_status=405, allow="GET")
                    return
                credentials = credentials_of(scope)
                with counted_refusals(self._endpoint, credentials.peer):
                    self._bodies.admit()
                    place.take()
                    self._context.manager.admit()
                    service = await self._context.manager.authenticate(credentials)
                arguments = _arguments(scope["query_string"])
            except TailraceError as error:
                await send_error(send, error)
                return
            await self._serve(scope, receive, send, arguments, service)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, arguments: dict[str, str], service: ResourceService
    ) -> None:
        """Answer a request that was let in; it is counted, traced, and logged if it fails."""
        name, endpoint, headers = scope["path_params"]["name"], self._endpoint, Headers(scope=scope)
        trace = {key: headers[key] for key in ("traceparent", "tracestate") if key in headers}
        answer = _Answer(send)
        try:
            with (
                traced(_OPERATION, trace, transport=endpoint.transport),
                endpoint.telemetry.request(endpoint.transport, _OPERATION) as telemetry,
            ):
                work = answer.give(service, name, arguments, telemetry)
                reason = await self._bodies.send(scope, receive, work, endless=True, begun=lambda: answer.begun)
                if reason is not None:
                    raise reason
        except TailraceError as error:
            log_failure(_OPERATION, error, resource=name)
            if not answer.begun:
                await send_error(send, error)
        except ResponseAborted:
            raise
        except Exception as error:
            # Behind the beginning it was logged where the response was cut off.
            if not answer.begun:
                logger.error("%s failed", _OPERATION, exc_info=error, extra={"resource": name})
                await send_error(send, InternalError(f"{_OPERATION} failed; the server's log says why"))


class _Answer:
    """One answer, which begins with the first record."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        """Whether anything of it was sent."""

    async def give(
        self, service: ResourceService, name: str, arguments: dict[str, str], telemetry: RequestTelemetry
    ) -> None:
        """Send the records of a source as they come.

        Raises:
            Unsupported: Its records are no lines.
            TailraceError: What went wrong, before or behind the first record.
        """
        results = await service.records.query(name, check_arguments(arguments))
        async with aclosing(results.batches) as batches:
            is_json = _JSON.match(results.content_type) is not None
            if not is_json and not _TEXT.match(results.content_type):
                raise Unsupported(
                    f"records of type {results.content_type[:80]!a} are no lines; ask over another protocol"
                )
            content_type = "application/x-ndjson" if is_json else "text/plain; charset=utf-8"
            async for batch in batches:
                lines = _json_lines(batch.data) if is_json else _text_lines(batch.data)
                await self._begin(content_type)
                await self._send({"type": "http.response.body", "body": lines, "more_body": True})
                telemetry.sent(len(lines))
                # A server that takes everything at once must not keep other tasks from running.
                await asyncio.sleep(0)
        await self._begin(content_type)
        await self._send({"type": "http.response.body", "body": b""})

    async def _begin(self, content_type: str) -> None:
        if not self.begun:
            self.begun = True
            await send_start(self._send, 200, {"content-type": content_type, "cache-control": "no-store"})


def _arguments(query_string: bytes) -> dict[str, str]:
    """Read the arguments of a query.

    Raises:
        InvalidArgument: They are no UTF-8, too many, or one is there twice.
    """
    try:
        pairs = parse_qsl(
            query_string.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS
        )
    except UnicodeDecodeError:
        raise InvalidArgument(field="arguments", problem="not UTF-8") from None
    except ValueError:
        raise InvalidArgument(field="arguments", problem=f"more than {_MOST_PARAMETERS}") from None
    arguments: dict[str, str] = {}
    for name, value in pairs:
        if name in arguments:
            raise InvalidArgument(field=name[:80], problem="more than once")
        arguments[name] = value
    return arguments


def _json_lines(records: Sequence[bytes]) -> bytes:
    """Return a line for each record.

    Raises:
        QueryFailed: One is empty, which is no JSON and would not show.
    """
    lines = b"\n".join(records)
    if lines.count(b"\n") >= len(records) or b"\r" in lines:
        # JSON has no line ends but those between its tokens, where a space does as well.
        records = [record.translate(_LINE_ENDS_TO_SPACES) for record in records]
        lines = b"\n".join(records)
    if not all(records):
        raise QueryFailed("the source gave a record that is empty, and no JSON")
    return lines + b"\n"


def _text_lines(records: Sequence[bytes]) -> bytes:
    """Return a line for each record.

    Raises:
        QueryFailed: One has a line end in it, so that it cannot be told from two.
    """
    lines = b"\n".join(records)
    if lines.count(b"\n") >= len(records) or b"\r" in lines:
        raise QueryFailed("the source gave a record of more than one line, which plain text cannot hold")
    return lines + b"\n"
