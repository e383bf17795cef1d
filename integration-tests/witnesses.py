"""Whoever watches an upload through all faults: what a follower and a watcher may ever see, and must see in the end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from tailrace_common_api import Status
from tailrace_impl_common import ConnectedClient, head_of


class Witness:
    """A follower and a watcher of one resource, over one client. Both end with the resource."""

    def __init__(
        self, client: ConnectedClient, id: str, source: bytes, *, asking: ConnectedClient | None = None
    ) -> None:
        """Begin to watch a resource that must be ``source``, or a prefix of it.

        Args:
            client: Whose connection is used.
            id: Of the resource.
            source: What it is in the end.
            asking: Who asks for its last status, instead of watching its statuses over ``client``: unlike bytes, they
                have no hashes. Where a network changes them and TLS does not tell, nobody can.
        """
        self._client = client
        self._asking = asking
        self._id = id
        self._source = source
        self.size = 0
        """Bytes that the follower has."""
        self.statuses: list[Status] = []
        """What the watcher has seen."""
        self._tasks = [asyncio.ensure_future(self._follow())]
        if asking is None:
            self._tasks.append(asyncio.ensure_future(self._watch()))

    async def _follow(self) -> None:
        async with aclosing(self._client.open(self._id).follow_chunks()) as chunks:
            async for chunk in chunks:
                data = bytes(chunk.data)
                # Nothing is missing and nothing comes twice: the next byte follows on the last one.
                assert chunk.offset == self.size
                assert data == self._source[self.size : self.size + len(data)], f"other bytes at {self.size}"
                self.size += len(data)

    async def _watch(self) -> None:
        async with aclosing(self._client.open(self._id).statuses()) as statuses:
            async for status in statuses:
                if self.statuses:
                    last = self.statuses[-1]
                    assert status.size >= last.size, "an announced size went back"
                    assert status.version > last.version
                    assert not last.state.terminal
                assert status.head == head_of(self._source[: status.size])
                self.statuses.append(status)

    async def end(self) -> Status:
        """Wait for the end of the resource, and return its status.

        Raises:
            TailraceError: Following or watching failed.
        """
        await asyncio.gather(*self._tasks)
        last = self.statuses[-1] if self._asking is None else await self._asking.status(self._id)
        assert last.state.terminal
        assert last.size == self.size
        return last

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
