"""Pings that find out whether the peer is there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from tailrace_impl_common._traffic import LOOKS_PER_TIMEOUT, Patience


class Keepalive:
    """Asks the peer from time to time, and reports one that does not answer.

    Question and answer wait behind what is on its way already, which may take long. So the time for the answer begins
    anew whenever bytes are seen to flow.
    """

    __slots__ = (
        "_asked_at",
        "_interval",
        "_loop",
        "_lost",
        "_moved",
        "_patience",
        "_payload",
        "_ping",
        "_round_trip",
        "_timeout",
        "_timer",
        "_transport",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interval: float,
        timeout: float | None,
        transport: asyncio.Transport,
        *,
        ping: Callable[[bytes], None],
        lost: Callable[[], None],
        moved: Callable[[], bool] | None = None,
    ) -> None:
        """Ask for the first time after ``interval``.

        Args:
            loop: Event loop of the connection.
            interval: Time between two pings, in seconds.
            timeout: Time for the answer, in seconds; ``None``: none is waited for.
            transport: Of the connection.
            ping: Sends a ping with a payload.
            lost: Called when there was no answer in time; nothing is asked after that.
            moved: Tells what the transport does not: whether bytes have flown since this was asked last.
        """
        self._loop = loop
        self._interval = interval
        self._timeout = timeout
        self._ping = ping
        self._lost = lost
        self._moved = moved
        self._transport = transport
        self._patience: Patience | None = None
        self._payload: bytes | None = None
        self._asked_at = 0.0
        self._round_trip = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._schedule()

    def answered(self, payload: bytes) -> None:
        """Take a pong; one that answers no ping, or an old one, says nothing."""
        if payload != self._payload:
            return
        self._payload = None
        self._patience = None
        self._round_trip = self._loop.time() - self._asked_at
        if self._timeout is not None:
            self.stop()
            self._schedule()

    def wait_again(self) -> None:
        """Let the time for the answer begin anew."""
        if self._patience is not None:
            self._patience.begin_anew()
            self._look_later()

    def stop(self) -> None:
        """Ask no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._timer = self._loop.call_later(max(0.0, self._interval - self._round_trip), self._ask)

    def _ask(self) -> None:
        self._payload = random.getrandbits(32).to_bytes(4, "big")
        self._asked_at = self._loop.time()
        if self._timeout is not None:
            # What the question itself does to the connection is not to be seen.
            self._patience = Patience(self._transport)
        self._ping(self._payload)
        if self._timeout is None:
            self._schedule()
        else:
            self._look_later()

    def _look_later(self) -> None:
        if self._timeout is not None:
            self._timer = self._loop.call_later(self._timeout / LOOKS_PER_TIMEOUT, self._look)

    def _look(self) -> None:
        self._timer = None
        lasts = self._patience is not None and self._patience.lasts()
        if self._moved is not None and self._moved():
            self.wait_again()
        elif lasts:
            self._look_later()
        else:
            self._lost()
