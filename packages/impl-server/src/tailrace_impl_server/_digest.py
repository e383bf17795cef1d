"""The SHA-256 of a resource, computed behind its announced end."""

from __future__ import annotations

import asyncio
import hashlib

from tailrace_common_api import MEBIBYTE
from tailrace_impl_server._live_resource import LiveResource

_INLINE = 64 * 1024
"""Pieces up to this size are hashed on the loop: that takes less time than asking a thread."""


class ContentDigest:
    """Follows a resource and hashes it, in threads, so that its end waits for the last bytes only."""

    def __init__(self, live: LiveResource) -> None:
        self._live = live
        self._hash = hashlib.sha256()
        self._offset = 0
        self._hashing: asyncio.Future[None] | None = None
        self._following = asyncio.create_task(self._follow(), name=f"tailrace-sha256-{live.id}")

    async def result(self) -> bytes:
        """Return the SHA-256 of what is announced; called once, when nothing more will be announced.

        Raises:
            Deleted: The resource was deleted.
            DamagedBlock, StorageFailure: The resource cannot be read.
        """
        await self.close()
        await self._catch_up()
        return self._hash.digest()

    async def close(self) -> None:
        """Stop following. Idempotent."""
        self._following.cancel()
        await asyncio.wait((self._following,))
        if not self._following.cancelled():
            # What went wrong is of interest only to who asks for the result, and that reads again.
            self._following.exception()

    async def _follow(self) -> None:
        while True:
            version = self._live.snapshot.version
            await self._catch_up()
            await self._live.changed(version)

    async def _catch_up(self) -> None:
        if self._hashing is not None:
            await asyncio.shield(self._hashing)
            self._hashing = None
        while self._offset < self._live.snapshot.size:
            self._live.check()
            end = min(self._live.snapshot.size, self._offset + MEBIBYTE)
            piece = await self._live.pieces.read(self._offset, end)
            self._offset += len(piece.data)
            if len(piece.data) <= _INLINE:
                self._hash.update(piece.data)
            else:
                # A cancellation does not stop the thread: the next piece waits for it.
                self._hashing = asyncio.get_running_loop().run_in_executor(None, self._hash.update, piece.data)
                await asyncio.shield(self._hashing)
                self._hashing = None
