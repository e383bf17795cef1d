"""Notices that a PostgreSQL database does not answer any more, and ends what waits for it.

What a bulk or a query asks of its database may rightly take an hour, so none of it has a time limit. Instead, while
something takes long, the database is asked something easy over a connection of its own. When it has no answer to that,
time and again, the connections that wait for it are cut, and who uses them gets an error. A single connection that was
lost on the way, while the database is well, is found by the keep-alive of TCP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

_log = logging.getLogger(__name__)

_INTERVAL = 10.0
"""Time between two looks, and after which a use of a connection is long, in seconds."""
_SILENT = 2
"""Questions in a row that get no answer from a database that is given up."""

_KEEP_ALIVE_IDLE, _KEEP_ALIVE_INTERVAL, _KEEP_ALIVE_COUNT = 15, 5, 3
_UNACKNOWLEDGED_MILLISECONDS = 30_000


class Pulse:
    """Looks after the connections of one database that are in use. Belongs to one event loop."""

    def __init__(self, name: str, answers: Callable[[], Awaitable[bool]]) -> None:
        """Watch the database ``name``; ``answers`` asks it something, and returns whether it said anything at all."""
        self._name = name
        self._answers = answers
        self._used: dict[object, tuple[Any, float]] = {}
        self._task: asyncio.Task[None] | None = None
        self.silent = False
        """Whether it was given up, and has not answered since."""

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name=f"pulse of the database {self._name}")

    async def close(self) -> None:
        """Stop; idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @contextmanager
    def used(self, connection: Any) -> Iterator[None]:
        """Look after ``connection`` meanwhile: it is terminated when the database has gone silent."""
        use = object()
        self._used[use] = (connection, asyncio.get_running_loop().time())
        try:
            yield
        finally:
            self._used.pop(use, None)

    async def _run(self) -> None:
        unanswered = 0
        while True:
            await asyncio.sleep(_INTERVAL)
            long_since = asyncio.get_running_loop().time() - _INTERVAL
            if not self.silent and all(since > long_since for _, since in self._used.values()):
                unanswered = 0
            elif await self._answers():
                unanswered, self.silent = 0, False
            else:
                unanswered += 1
                if unanswered >= _SILENT:
                    self._give_up()

    def _give_up(self) -> None:
        self.silent = True
        used, self._used = self._used, {}
        if used:
            _log.error("the database %s does not answer: %d connections are cut", self._name, len(used))
        for connection, _ in used.values():
            connection.terminate()


def keep_alive(transport: Any) -> None:
    """Have the system find out that the other side of a connection is gone, in about half a minute."""
    connected = transport.get_extra_info("socket")
    if connected is None or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Not every system has all of them.
    for name, value in (
        ("TCP_KEEPIDLE", _KEEP_ALIVE_IDLE),
        ("TCP_KEEPINTVL", _KEEP_ALIVE_INTERVAL),
        ("TCP_KEEPCNT", _KEEP_ALIVE_COUNT),
        ("TCP_USER_TIMEOUT", _UNACKNOWLEDGED_MILLISECONDS),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
