"""The beginning of a WebSocket connection: its request, and what the application answers."""

from __future__ import annotations

import email.utils
import logging
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import unquote

from starlette.types import Message, Scope
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

_Headers = Iterable[tuple[bytes, bytes]]


class Handshake:
    """Answers the request of one connection."""

    __slots__ = ("_accepted", "_body", "_connection", "_denial", "answer", "request")

    def __init__(self, data: bytes, logger: logging.Logger) -> None:
        """Read the request, which has to be whole.

        Args:
            data: The bytes of it.
            logger: What the library underneath logs to.
        """
        self._connection = ServerProtocol(logger=logger)
        self._connection.receive_data(data)
        self.request: Request | None = next(
            (event for event in self._connection.events_received() if isinstance(event, Request)), None
        )
        """``None`` for a request that cannot be one for a WebSocket."""
        self.answer = b""
        """What to send to a client whose request was refused already, or whose denial is complete; empty for none."""
        self._denial: tuple[int, list[tuple[str, str]]] | None = None
        self._body = bytearray()
        if self.request is None:
            self.answer = b"".join(self._connection.data_to_send()) or self._respond(
                self._connection.reject(HTTPStatus.BAD_REQUEST, "Not a WebSocket handshake.\n")
            )
            return
        self._accepted = self._connection.accept(self.request)
        if self._accepted.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self.answer = self._respond(self._accepted)

    @property
    def denying(self) -> bool:
        """Whether the application has begun to answer with something else."""
        return self._denial is not None

    def scope(self, root_path: str) -> Scope:
        """Return what the request says to the application, without what the connection does."""
        assert self.request is not None
        raw_path, _, query = self.request.path.partition("?")
        offered = self.request.headers.get_all("Sec-WebSocket-Protocol")
        return {
            "type": "websocket",
            "http_version": "1.1",
            "root_path": root_path,
            "path": root_path + unquote(raw_path),
            "raw_path": root_path.encode("ascii") + raw_path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "headers": [
                (name.encode("ascii"), value.encode("latin-1", "surrogateescape"))
                for name, value in self.request.headers.raw_items()
            ],
            "subprotocols": [name.strip() for names in offered for name in names.split(",")],
        }

    def accept(self, message: Message, default_headers: _Headers) -> bytes:
        """Return the answer that opens the connection."""
        headers = self._accepted.headers
        del headers["Date"]
        headers.update(_decoded([*default_headers, *message.get("headers", ())]))
        subprotocol = message.get("subprotocol")
        if subprotocol:
            headers["Sec-WebSocket-Protocol"] = subprotocol
        return self._respond(self._accepted)

    def reject(self, status: HTTPStatus, text: str = "") -> bytes:
        """Return an answer that refuses the connection."""
        return self._respond(self._connection.reject(status, text))

    def begin_denial(self, message: Message) -> None:
        """Take the status and the headers of an answer of the application's own."""
        self._denial = (int(message["status"]), _decoded(message.get("headers", ())))

    def add_to_denial(self, message: Message) -> None:
        """Take a part of its body; behind the last one :attr:`answer` is there."""
        assert self._denial is not None
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            status, given = self._denial
            headers = Headers(given)
            headers.setdefault("Date", email.utils.formatdate(usegmt=True))
            headers.setdefault("Connection", "close")
            headers.setdefault("Content-Length", str(len(self._body)))
            headers.setdefault("Content-Type", "text/plain; charset=utf-8")
            self.answer = self._respond(Response(status, _phrase(status), headers, bytes(self._body)))

    def _respond(self, response: Response) -> bytes:
        self._connection.send_response(response)
        return b"".join(self._connection.data_to_send())


def _decoded(headers: _Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
