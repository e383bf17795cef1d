"""Hints between the servers on a PostgreSQL database that there is work: by NOTIFY, on a connection of its own.

A transaction that notifies holds a lock that all others need to commit; so none that matters does. What is to be told
is gathered for some milliseconds and told by one statement. Hints may be lost and repeated: after a connection was lost
everything is looked at.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tailrace_common_api import StorageFailure

if TYPE_CHECKING:
    from tailrace_impl_server._postgres import PostgresDatabase

_log = logging.getLogger(__name__)

_CHANNEL = "tailrace_work"
_GATHERED_SECONDS = 0.02
_RECONNECT_SECONDS = 0.5
_LOOK_SECONDS = 15.0
"""Time without anything to tell after which it is seen whether the connection works."""
_TELL_SECONDS = 10.0
_EVERYTHING = "*"
_PAYLOAD_BYTES = 7000
"""Longest list of queues that is told; a longer one is told as everything."""


class PostgresHints:
    """Tells other servers which queues have work, and hears it from them. Belongs to one event loop."""

    def __init__(self, database: PostgresDatabase) -> None:
        """Belong to a database, which must be open while this is."""
        self._database = database
        self._subscribers: dict[str, list[Callable[[], None]]] = {}
        self._untold: set[str] = set()
        self._wanted = asyncio.Event()
        self._starts = 0
        self._task: asyncio.Task[None] | None = None
        self.listening = asyncio.Event()
        """Set while hints of others are heard."""

    async def start(self) -> None:
        """Begin to listen, in the background; counted."""
        self._starts += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"hints of the database {self._database.name}")

    async def close(self) -> None:
        """Stop; once for each start."""
        self._starts = max(0, self._starts - 1)
        task = self._task
        if self._starts or task is None:
            return
        self._task = None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def subscribe(self, queue: str, wake: Callable[[], None]) -> None:
        """Call ``wake`` on the event loop when another server says that ``queue`` may have work."""
        self._subscribers.setdefault(queue, []).append(wake)

    def tell(self, queue: str) -> None:
        """Tell the other servers, soon, that ``queue`` may have work."""
        self._untold.add(queue)
        self._wanted.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except StorageFailure as error:
                _log.debug("no hints from other servers: %s", error)
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _listen(self) -> None:
        connection = await self._database.connect()
        lost = asyncio.Event()

        def end(_: object) -> None:
            lost.set()
            self._wanted.set()

        connection.add_termination_listener(end)
        try:
            with self._database.errors():
                await connection.add_listener(_CHANNEL, self._heard)
                self.listening.set()
                # What was told before is not heard any more.
                self._wake(_EVERYTHING)
                while not lost.is_set():
                    if not await self._is_wanted():
                        await self._database.is_alive(connection)
                        continue
                    # Others join in: a burst is told by one statement.
                    await asyncio.sleep(_GATHERED_SECONDS)
                    self._wanted.clear()
                    if not lost.is_set():
                        await self._notify(connection)
        finally:
            self.listening.clear()
            connection.terminate()

    async def _is_wanted(self) -> bool:
        """Wait until there is something to do; return whether there is."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                return await self._wanted.wait()
        except TimeoutError:
            return False

    async def _notify(self, connection: Any) -> None:
        untold, self._untold = self._untold, set()
        payload = ",".join(sorted(untold))
        if payload:
            told = payload if len(payload) <= _PAYLOAD_BYTES else _EVERYTHING
            await connection.execute("SELECT pg_notify($1, $2)", _CHANNEL, told, timeout=_TELL_SECONDS)

    def _heard(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        # This server has told its own consumers at once.
        if pid != connection.get_server_pid():
            self._wake(str(payload))

    def _wake(self, payload: str) -> None:
        queues = self._subscribers.keys() if payload == _EVERYTHING else payload.split(",")
        for queue in list(queues):
            for wake in self._subscribers.get(queue, ()):
                wake()
