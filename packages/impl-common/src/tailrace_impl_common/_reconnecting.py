"""The connection of a client, seen from its conversations: whether it is worth trying again, and when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from tailrace_common_api import ClientSettings, ConnectionLost, InvalidArgument, NotFound, ProtocolError, TailraceError
from tailrace_impl_common._retry import Reconnection, is_refusal_for_now, is_retried
from tailrace_impl_common._signal import Signal
from tailrace_impl_common._streams import ClientStream, Connection
from tailrace_impl_common.messages import CreateContext, Delete, Done, UnaryRequest

AnswerT = TypeVar("AnswerT")


async def ask(connection: Connection, request: UnaryRequest, answer_type: type[AnswerT]) -> AnswerT:
    """Send a unary request and return its answer.

    Raises:
        ProtocolError: The answer is not of ``answer_type``.
        TailraceError: The server's error, or the connection's.
    """
    answer = await connection.call(request)
    if not isinstance(answer, answer_type):
        raise ProtocolError(f"{type(answer).__name__} does not answer {type(request).__name__}")
    return answer


class ServerLink:
    """A connection that all conversations of a client share. Belongs to one event loop.

    The first use of a connection is not tried again, so that a wrong address fails at once.
    """

    def __init__(self, connection: Connection, settings: ClientSettings) -> None:
        """Use ``connection``, which is not this object's to close."""
        self.connection = connection
        self.settings = settings
        self.worked = False
        """Whether a server has answered over it."""
        self.closed = False
        """Whether the client was closed: then nothing is tried again."""
        self.window = settings.download_window
        """Window to ask for, in bytes; 0 leaves it to the transport, which has one that every server takes."""
        self._untried = connection.ways - 1
        self._woken = Signal()
        self._told: list[Signal] = []

    def close(self) -> None:
        """End every wait for another attempt; idempotent."""
        self.closed = True
        self.wake()
        for signal in self._told:
            signal.notify()

    @contextmanager
    def telling(self, signal: Signal) -> Generator[None, None, None]:
        """Notify ``signal`` when the client is closed within the block."""
        self._told.append(signal)
        try:
            yield
        finally:
            self._told.remove(signal)

    def wake(self) -> None:
        """Let everyone who waits for another attempt look whether it is still wanted."""
        self._woken.notify()

    def reconnection(self) -> Reconnection:
        """Return what decides whether and when a conversation is taken up again."""
        return Reconnection(self.settings.reconnect_timeout, random.random)

    def may_try_again(self) -> bool:
        """Return whether what has not begun may be tried again: a server is known, or there is another way to it."""
        if self.worked:
            return True
        self._untried -= 1
        return self._untried >= 0

    def leaves_window(self, error: TailraceError) -> bool:
        """Return whether ``error`` refuses a window; from then on it is left to the transport."""
        if not isinstance(error, InvalidArgument) or error.field != "window":
            return False
        self.window = 0
        return True

    def lose(self, stream: ClientStream, error: TailraceError) -> None:
        """Take note that a conversation was lost."""
        if is_retried(error):
            self.connection.turn(stream)

    async def come_back(
        self,
        reconnection: Reconnection,
        error: TailraceError,
        *,
        unwanted: Callable[[], bool] | None = None,
    ) -> None:
        """Wait until a lost conversation is to be tried again.

        Args:
            reconnection: What decides about it.
            error: Why it was lost.
            unwanted: Whether the next attempt is not wanted any more; asked whenever :meth:`wake` is called.

        Raises:
            TailraceError: ``error``: it is not to be tried again.
        """
        loop = asyncio.get_running_loop()
        if self._is_over(unwanted):
            raise error
        delay = reconnection.lose(error, loop.time())
        if delay is None:
            raise error
        try:
            async with asyncio.timeout(delay):
                while not self._is_over(unwanted):
                    await self._woken.wait()
        except TimeoutError:
            return
        raise error

    def _is_over(self, unwanted: Callable[[], bool] | None) -> bool:
        return self.closed or (unwanted is not None and unwanted())

    def opened(self, reconnection: Reconnection) -> None:
        """Take note that a server has answered in a conversation."""
        self.worked = True
        reconnection.open(asyncio.get_running_loop().time())

    async def ask(self, request: UnaryRequest, answer_type: type[AnswerT]) -> AnswerT:
        """Send a unary request and return its answer; see :func:`ask`.

        What can be asked twice is asked again when the connection was lost on the way. When a deletion is, and there is
        nothing to delete the second time, it was done.
        """
        reconnection: Reconnection | None = None
        while True:
            try:
                answer = await ask(self.connection, request, answer_type)
            except NotFound:
                if reconnection is not None and isinstance(request, Delete) and answer_type is Done:
                    done = Done()
                    assert isinstance(done, answer_type)
                    return done
                raise
            except TailraceError as error:
                again = is_refusal_for_now(error) or (
                    isinstance(error, ConnectionLost) and not isinstance(request, CreateContext)
                )
                if not (again and self.may_try_again()):
                    raise
                reconnection = reconnection or self.reconnection()
                await self.come_back(reconnection, error)
            else:
                self.worked = True
                return answer
