"""Pings that find out whether the peer is there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable


class Keepalive:
    """Asks the peer from time to time, and reports one that does not answer."""

    __slots__ = ("_asked_at", "_interval", "_loop", "_lost", "_payload", "_ping", "_round_trip", "_timeout", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interval: float,
        timeout: float | None,
        *,
        ping: Callable[[bytes], None],
        lost: Callable[[], None],
    ) -> None:
        """Ask for the first time after ``interval``.

        Args:
            loop: Event loop of the connection.
            interval: Time between two pings, in seconds.
            timeout: Time for the answer, in seconds; ``None``: none is waited for.
            ping: Sends a ping with a payload.
            lost: Called when there was no answer in time; nothing is asked after that, unless it waits again.
        """
        self._loop = loop
        self._interval = interval
        self._timeout = timeout
        self._ping = ping
        self._lost = lost
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
        self._round_trip = self._loop.time() - self._asked_at
        if self._timeout is not None:
            self.stop()
            self._schedule()

    def wait_again(self) -> None:
        """Wait for the answer that did not come in time as long once more."""
        if self._timeout is not None:
            self._timer = self._loop.call_later(self._timeout, self._give_up)

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
        self._ping(self._payload)
        if self._timeout is None:
            self._schedule()
        else:
            self._timer = self._loop.call_later(self._timeout, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        self._lost()
