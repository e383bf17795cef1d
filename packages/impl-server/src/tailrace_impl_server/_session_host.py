"""What a session of an upload needs of the server around it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from tailrace_common_api import PermissionDenied, QuotaExceeded, TailraceError
from tailrace_impl_server._live_resource import LiveResource, Session
from tailrace_impl_server._settings import ServerSettings
from tailrace_server_api import Snapshot


class HostedSession(Session, Protocol):
    """A session, as its host sees it."""

    live: LiveResource

    @property
    def epoch(self) -> int:
        """Epoch under which the session writes."""


class SessionHost(Protocol):
    """What a session needs of the manager."""

    settings: ServerSettings

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that the manager waits for when it closes."""

    def window(self) -> int:
        """Return the window that an upload gets at the moment, in bytes."""

    def checkpoint_made(self, seconds: float) -> None:
        """Take note of a checkpoint that took so long."""

    def checkpoint_failed(self, error: TailraceError) -> None:
        """Take note that a checkpoint could not be made."""

    def announced(self, id: str) -> None:
        """Tell other processes that a resource has changed."""

    def grown(self, live: LiveResource) -> None:
        """Take note that a resource has grown."""

    def refused(self, live: LiveResource, error: QuotaExceeded | PermissionDenied) -> None:
        """Take note that more of an upload was refused."""

    async def record_state(self, live: LiveResource, snapshot: Snapshot) -> None:
        """Let the catalog follow; never raises."""

    def has_ended(self, live: LiveResource) -> None:
        """Take note that a resource has ended."""

    async def discard(self, live: LiveResource) -> None:
        """Delete what an atomic upload leaves that does not complete."""

    def session_ended(self, session: HostedSession) -> None:
        """Take note that a session does nothing any more; called once."""
