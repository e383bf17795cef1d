"""Callers who show a token of a file."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping

from tailrace_common_api import ConfigurationError, Unauthenticated
from tailrace_impl_server._token_file import TokenEntry, TokenFile, find_token
from tailrace_server_api import Authenticator, Credentials, Principal

logger = logging.getLogger(__name__)

CHECK_INTERVAL = 0.5
"""Longest time for which a token that was revoked may still be good for new requests, in seconds."""
_NEEDED = "a valid bearer token is needed"
"""The same for every reason, so that nobody learns which one it was."""


class TokenAuthenticator(Authenticator):
    """Knows callers by the tokens of a file, which is read again when it has changed.

    A file that cannot be used any more is logged, and what was last read of it stays in force: nobody who runs is
    locked out by a mistake in it. Expiry goes on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        check_interval: float = CHECK_INTERVAL,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Use the file at ``path``.

        Args:
            path: A file that ``TokenFile`` wrote.
            check_interval: Least time between two looks whether it has changed, in seconds.
            now: Returns the time in seconds since the epoch.
        """
        self._file = TokenFile(path)
        self._check_interval = check_interval
        self._now = now
        self._entries: Mapping[str, TokenEntry] = {}
        self._signature: tuple[int, int, int, int] | None = None
        self._checked = 0.0
        self._checking = asyncio.Lock()

    async def start(self) -> None:
        """Read the file.

        Raises:
            ConfigurationError: It is not there, cannot be read, is damaged, or can be read by others.
        """
        self._checked = asyncio.get_running_loop().time()
        self._signature, self._entries = await asyncio.to_thread(self._read)

    async def close(self) -> None:
        return

    async def authenticate(self, credentials: Credentials) -> Principal:
        await self._follow()
        if credentials.token is None:
            raise Unauthenticated(_NEEDED)
        entry = find_token(credentials.token, self._entries, self._now())
        if entry is None:
            raise Unauthenticated(_NEEDED)
        return Principal(name=entry.name, operations=entry.scopes, context=entry.context)

    async def _follow(self) -> None:
        """Read the file again if it has changed; those who come meanwhile wait."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._checked < self._check_interval:
            return
        async with self._checking:
            if loop.time() - self._checked < self._check_interval:
                return
            began = loop.time()
            signature = await asyncio.to_thread(self._file.signature)
            if signature != self._signature:
                try:
                    self._signature, self._entries = await asyncio.to_thread(self._read)
                    logger.info("the tokens were read again")
                except ConfigurationError as error:
                    # Until it changes again.
                    self._signature = signature
                    logger.error("the tokens stay as they were: %s", error.message)
            self._checked = began

    def _read(self) -> tuple[tuple[int, int, int, int] | None, Mapping[str, TokenEntry]]:
        # In this order: a change between the two is seen as one the next time.
        return self._file.signature(), self._file.entries()
