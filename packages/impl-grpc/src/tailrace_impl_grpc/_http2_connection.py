"""The server's side of a connection: begins a call for each stream of a client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

import grpc

from tailrace_impl_grpc._http2_call import Http2Call
from tailrace_impl_grpc._http2_headers import (
    MAX_HEADER_BLOCK,
    BadRequest,
    CallHeaders,
    Fields,
    MalformedHeaders,
    parse_request_headers,
    refusal,
)
from tailrace_impl_grpc._http2_layout import (
    ENABLE_PUSH,
    MAX_CONCURRENT_STREAMS,
    PREFACE,
    ConnectionOffence,
    ErrorCode,
    reset,
)
from tailrace_impl_grpc._http2_peer import Http2Peer, ReceiveArea
from tailrace_impl_grpc._http2_stream import FIRST_WINDOW

_PREFACE_TIMEOUT = 10.0
"""Time for the first bytes of a client, in seconds."""


class CallHost(Protocol):
    """Who serves the calls of a connection."""

    max_calls: int
    """Most calls of a connection."""
    max_message: int
    """Largest message of a client, in bytes."""
    compress: bool
    """Whether to compress what is sent, where clients accept it."""
    keepalive_interval: float
    """Time between two pings, in seconds."""
    keepalive_timeout: float
    """Time for the answer to one, in seconds."""

    def connected(self, connection: Http2Connection) -> None:
        """Learn of a connection."""

    def disconnected(self, connection: Http2Connection) -> None:
        """Learn that one is lost."""

    def serve(self, call: Http2Call) -> None:
        """Begin to serve a call."""


class Http2Connection(Http2Peer[Http2Call]):
    """A connection of a client."""

    def __init__(self, host: CallHost, area: ReceiveArea, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for a transport of ``loop``; ``host`` serves the calls."""
        super().__init__(
            area,
            loop,
            window=FIRST_WINDOW,
            keepalive_interval=host.keepalive_interval,
            keepalive_timeout=host.keepalive_timeout,
        )
        self.peer = "unknown"
        """Address of the client, as gRPC writes it."""
        self.auth_context: Mapping[str, Iterable[bytes]] = {}
        """What the client's certificate says."""
        self._host = host
        self._running = 0
        self._preface = len(PREFACE)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.peer = _peer(transport.get_extra_info("peername"))
        self.auth_context = _auth_context(transport.get_extra_info("peercert"))
        super().connection_made(transport)
        self._timer = self.loop.call_later(_PREFACE_TIMEOUT, self.transport.abort)
        self._host.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._host.disconnected(self)

    def _settings(self) -> Mapping[int, int]:
        return {MAX_CONCURRENT_STREAMS: self._host.max_calls}

    def _take_setting(self, name: int, value: int) -> None:
        if name == ENABLE_PUSH and value > 1:
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "push is on or off")

    def _begin(self, area: bytearray, end: int) -> int:
        if not self._preface:
            return 0
        known = len(PREFACE) - self._preface
        position = min(self._preface, end)
        if area[:position] != PREFACE[known : known + position]:
            raise ConnectionOffence(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        self._preface -= position
        if not self._preface and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return position

    def _is_idle(self, number: int) -> bool:
        return number > self._last_stream or not number & 1

    def _headers_received(self, number: int, fields: Fields, ends: bool) -> None:
        if not self._begins_call(number, ends):
            return
        host = self._host
        if self._running >= 2 * host.max_calls or len(self._streams) >= host.max_calls:
            self.write_control(reset(number, ErrorCode.REFUSED_STREAM))
            return
        try:
            headers = parse_request_headers(fields)
        except MalformedHeaders:
            self.write_control(reset(number, ErrorCode.PROTOCOL_ERROR))
        except BadRequest as problem:
            self._refuse(number, problem, ends)
        else:
            self._begin_call(number, headers, ends)

    def _headers_dropped(self, number: int, ends: bool) -> None:
        if self._begins_call(number, ends):
            problem = BadRequest(200, grpc.StatusCode.RESOURCE_EXHAUSTED, f"headers above {MAX_HEADER_BLOCK} bytes")
            self._refuse(number, problem, ends)

    def _begins_call(self, number: int, ends: bool) -> bool:
        """Take note that a stream has headers; return whether they begin a call that may begin."""
        call = self._streams.get(number)
        if call is not None:
            # Trailers, of which gRPC's clients have none; they end the stream, or are malformed.
            if call.half_closed or not ends:
                self._reset(call, ErrorCode.STREAM_CLOSED if call.half_closed else ErrorCode.PROTOCOL_ERROR)
            else:
                call.received_all()
            return False
        if number <= self._last_stream:
            # Of a call that is over; its client has not heard yet.
            return False
        # Begun for its client also where it is not taken, and what follows of it is no offence.
        self._last_stream = number
        return not self._leaving

    def _refuse(self, number: int, problem: BadRequest, ends: bool) -> None:
        self.write_control(self.header_frames(number, refusal(problem), ends=True))
        if not ends:
            self.write_control(reset(number, ErrorCode.NO_ERROR))

    def _begin_call(self, number: int, headers: CallHeaders, ends: bool) -> None:
        host = self._host
        call = Http2Call(self, number, headers, max_message=host.max_message, compress=host.compress)
        self._streams[number] = call
        self._running += 1
        if ends:
            call.received_all()
        host.serve(call)

    def served(self) -> None:
        """Learn that nobody works for one of the calls any more."""
        self._running -= 1


def _peer(address: object) -> str:
    if not isinstance(address, tuple):
        return "unknown"
    host, port = address[0], address[1]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _auth_context(certificate: object) -> Mapping[str, Iterable[bytes]]:
    """Return names in a certificate that was checked, by the names that gRPC has for them."""
    if not isinstance(certificate, dict):
        return {}
    common = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    others = [value for _, value in certificate.get("subjectAltName", ())]
    return {
        "x509_common_name": [name.encode() for name in common],
        # That of a directory is no text.
        "x509_subject_alternative_name": [name.encode() for name in others if isinstance(name, str)],
    }
