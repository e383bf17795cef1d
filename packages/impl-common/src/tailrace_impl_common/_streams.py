"""The seam between protocol and transport: what a transport implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from tailrace_impl_common.messages import (
    ClientMessage,
    Request,
    ServerMessage,
    UnaryAnswer,
    UnaryRequest,
)

SendT = TypeVar("SendT")
ReceiveT = TypeVar("ReceiveT")


class MessageStream(ABC, Generic[SendT, ReceiveT]):
    """One conversation, seen from one side. Belongs to one event loop.

    One task sends and one (other or same) task receives at a time.
    """

    @abstractmethod
    async def send(self, message: SendT) -> None:
        """Send a message; returns when the transport can take another one.

        Buffers of the message are held by reference until they are sent. A cancelled call may or may not have sent
        the message.

        Raises:
            TailraceError: The conversation has ended: the peer's error, or ``ConnectionLost``.
        """

    async def send_together(self, *messages: SendT) -> None:
        """Send messages, in order, each of another kind and none of them a chunk; a transport may put them together.

        Raises:
            TailraceError: As :meth:`send`.
        """
        for message in messages:
            await self.send(message)

    async def send_last(self, *messages: SendT) -> None:
        """Send the last messages of the conversation, in order; nothing is sent behind them.

        At most one of them is a chunk, and a small one: a transport may put them together, and with the end of the
        conversation, and return before the peer can take them.

        Raises:
            TailraceError: As :meth:`send`.
        """
        for message in messages:
            await self.send(message)

    @property
    def writer(self) -> Callable[[SendT], None] | None:
        """What sends one message without waiting: to be called at once, and while nobody is in :meth:`send`.

        ``None`` while the transport has to be waited for; always, where it never takes a message otherwise.
        """
        return None

    @property
    def keeps_unread(self) -> bool:
        """Whether nobody has to receive all the time: what comes is kept within bounds, and a lost peer is noticed."""
        return False

    @abstractmethod
    async def receive(self) -> ReceiveT | None:
        """Return the next message, or ``None`` when the peer has ended the conversation in order.

        Raises:
            TailraceError: The peer's error, ``ProtocolError`` for a message that cannot be decoded, or
                ``ConnectionLost``, also when the peer cancelled.
        """


ServerStream = MessageStream[ServerMessage, ClientMessage]
"""A conversation on the server's side, behind its first message."""


class ClientStream(MessageStream[ClientMessage, ServerMessage]):
    """A conversation on the client's side."""

    @abstractmethod
    async def close(self) -> None:
        """End the conversation: what still runs is cancelled, at the server too. Idempotent, never raises."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Connection(ABC):
    """A client's way to a server, for any number of concurrent conversations. Belongs to one event loop."""

    @property
    @abstractmethod
    def best_chunk_size(self) -> int:
        """Size of chunks that suits this transport best, in bytes."""

    @property
    def ways(self) -> int:
        """How many ways to a server this connection has, at least 1; see :meth:`turn`."""
        return 1

    @abstractmethod
    async def open(self, request: Request) -> ClientStream:
        """Begin a conversation; connects first where necessary.

        Raises:
            TailraceError: The server's error, where it refuses the conversation before all of the request is sent.
            ConnectionLost: The server cannot be reached.
            DeadlineExceeded: Connecting took too long.
        """

    @abstractmethod
    async def call(self, request: UnaryRequest) -> UnaryAnswer:
        """Ask and return the answer.

        Raises:
            TailraceError: The server's error.
            ConnectionLost: The server cannot be reached.
            DeadlineExceeded: The answer took too long.
        """

    def turn(self, stream: ClientStream) -> None:
        """Take note that a conversation was lost: a connection that has several ways to a server takes another one."""
        return

    @abstractmethod
    async def close(self) -> None:
        """End every conversation and release the connection; idempotent."""
