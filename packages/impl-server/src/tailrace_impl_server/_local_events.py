"""Hints within one process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from tailrace_server_api import EventBus, Listener

_log = logging.getLogger(__name__)


class LocalEventBus(EventBus):
    """Carries hints to listeners on the same event loop; those of one turn of the loop arrive together."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # Each subscription is an object of its own, so that one listener may subscribe twice.
        self._subscriptions: dict[object, Listener] = {}
        self._changed: set[str] = set()

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        self._loop = None
        self._subscriptions.clear()
        self._changed.clear()

    def publish(self, ids: Collection[str]) -> None:
        if self._loop is None or not ids:
            return
        if not self._changed:
            self._loop.call_soon(self._deliver)
        self._changed.update(ids)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        key = object()
        self._subscriptions[key] = listener
        return lambda: self._end(key)

    def _end(self, key: object) -> None:
        self._subscriptions.pop(key, None)

    def _deliver(self) -> None:
        changed = frozenset(self._changed)
        self._changed.clear()
        if not changed:
            return
        for key, listener in list(self._subscriptions.items()):
            # A listener before it may have ended this subscription, or closed the bus.
            if key not in self._subscriptions:
                continue
            try:
                listener(changed)
            except Exception:  # noqa: BLE001 - one listener's defect must not keep a hint from the others.
                _log.exception("a listener for changes failed")
