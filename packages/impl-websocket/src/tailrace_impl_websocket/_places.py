"""How many WebSockets and requests over plain HTTP a server has at the same time."""

from __future__ import annotations

from collections.abc import Awaitable
from types import TracebackType
from typing import Self

from starlette.types import Message, Send

from tailrace_common_api import Overloaded

_RETRY_AFTER = 1.0
"""What clients are told of a server that is full, in seconds."""


class Places:
    """All places of a server, for both kinds of connections together. Belongs to one event loop."""

    def __init__(self, most: int) -> None:
        """Have ``most`` places, all of which are free."""
        self._free = most

    def place(self) -> Place:
        """Return one that is still to be taken."""
        return Place(self)


class Place:
    """What somebody may take a place with; as a context manager it is left at the end of the block."""

    __slots__ = ("_places", "_taken")

    def __init__(self, places: Places) -> None:
        self._places = places
        self._taken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    def take(self) -> None:
        """Take a place.

        Raises:
            Overloaded: None is free.
        """
        assert not self._taken
        if self._places._free <= 0:
            raise Overloaded(what="connections", retry_after=_RETRY_AFTER)
        self._places._free -= 1
        self._taken = True

    def leave(self) -> None:
        """Give it back, if one was taken. Idempotent."""
        if self._taken:
            self._taken = False
            self._places._free += 1

    def until_answered(self, send: Send) -> Send:
        """Return what sends as ``send``, and leaves with the end of the answer.

        A client that has its answer may ask again before those who have sent it have come to their ends.
        """

        def send_part(message: Message) -> Awaitable[None]:
            ends = message["type"] == "http.response.body" and not message.get("more_body", False)
            return self._send_end(send, message) if ends else send(message)

        return send_part

    async def _send_end(self, send: Send, message: Message) -> None:
        await send(message)
        self.leave()
