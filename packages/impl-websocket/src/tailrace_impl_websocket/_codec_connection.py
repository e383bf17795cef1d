"""What is said of a connection, and of a request as a whole, to JSON and back."""

from __future__ import annotations

from dataclasses import dataclass, field

from tailrace_common_api import Limits, ProtocolError, TailraceError, Unsupported
from tailrace_impl_websocket._codec_values import error_to_json, limits_to_json, read_error, read_limits
from tailrace_impl_websocket._fields import Fields

PROTOCOL_VERSION = 1
"""What ``hello`` says; the number rises when old clients could not understand what is said."""

MAX_TOKEN = 4096
"""Longest bearer token in a message, in characters."""


@dataclass(frozen=True, slots=True)
class Authenticate:
    """The client's first message, where it could show no token in the handshake."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client wants nothing more of this request."""


@dataclass(frozen=True, slots=True)
class Ping:
    """The client asks for a sign of life, where it cannot send protocol pings."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers ``Ping``."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The server's first message on a connection."""

    protocol: int
    limits: Limits
    keepalive_interval: float
    """Seconds after which a client that cannot send protocol pings should send ``Ping``."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a request, or of the connection."""

    error: TailraceError


def connection_request_to_json(message: Authenticate | Cancel | Ping) -> tuple[str, dict[str, object]]:
    match message:
        case Authenticate():
            return "authenticate", {"token": message.token}
        case Cancel():
            return "cancel", {}
        case Ping():
            return "ping", {}


def read_connection_request(name: str, fields: Fields) -> Authenticate | Ping | None:
    """Return a client's message that belongs to no request; ``None`` for every other one.

    Raises:
        ProtocolError: The token is missing or too long.
    """
    match name:
        case "authenticate":
            token = fields.text("token")
            if len(token) > MAX_TOKEN:
                raise ProtocolError(f"a token of {len(token)} characters; at most {MAX_TOKEN} are allowed")
            return Authenticate(token)
        case "ping":
            return Ping()
        case _:
            return None


def connection_response_to_json(message: Hello | Pong | Failure) -> tuple[str, dict[str, object]]:
    match message:
        case Hello():
            return "hello", {
                "protocol": message.protocol,
                "limits": limits_to_json(message.limits),
                "keepalive_interval": message.keepalive_interval,
            }
        case Pong():
            return "pong", {}
        case Failure():
            return "error", error_to_json(message.error)


def read_connection_response(name: str, fields: Fields) -> Hello | Pong | Failure | None:
    """Return a server's message that belongs to no request; ``None`` for every other one.

    Raises:
        Unsupported: The server speaks another version of the protocol.
    """
    match name:
        case "hello":
            protocol = fields.integer("protocol")
            if protocol != PROTOCOL_VERSION:
                raise Unsupported(f"the server speaks version {protocol} of the protocol")
            return Hello(protocol, read_limits(fields.nested("limits")), fields.number("keepalive_interval"))
        case "pong":
            return Pong()
        case "error" if not fields.has("request"):
            return read_failure(fields)
        case _:
            return None


def read_failure(fields: Fields) -> Failure:
    return Failure(read_error(fields))
