"""The one event loop of a process that the blocking API runs in."""

from __future__ import annotations

import importlib.util
import os
import threading
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal


class SharedPortal:
    """A loop in a thread of its own, there while it is in use. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._running: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None

    def acquire(self) -> BlockingPortal:
        """Return the portal; starts the loop for its first user."""
        from anyio.from_thread import start_blocking_portal

        with self._lock:
            if self._portal is None:
                # uvloop where it is installed, as everywhere in this package.
                options = {"use_uvloop": importlib.util.find_spec("uvloop") is not None}
                self._running = start_blocking_portal("asyncio", options)
                self._portal = self._running.__enter__()
            self._users += 1
            return self._portal

    def release(self) -> None:
        """Give the portal back; the last user ends the loop, and whatever still runs there is cancelled."""
        with self._lock:
            self._users -= 1
            if self._users or self._portal is None or self._running is None:
                return
            portal, running = self._portal, self._running
            self._portal = self._running = None
            # Iterators and files that were never closed must not keep the thread.
            with suppress(RuntimeError):
                portal.call(portal.stop, True)
            running.__exit__(None, None, None)


PORTAL = SharedPortal()

# Loops of the parents of a forked process. Their threads are not here, so nothing may ever wait for them, and letting
# go of them would.
_ABANDONED: list[object] = []


def _forget() -> None:
    """Start anew in a forked process, which has the state of the loop and not its thread."""
    _ABANDONED.append(PORTAL.__dict__.copy())
    PORTAL.__init__()  # type: ignore[misc]  # others know the object; its state is what must go


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
