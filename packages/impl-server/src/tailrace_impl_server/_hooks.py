"""Calls the hooks of an embedding application, and bounds what they can do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec

from tailrace_common_api import GoingAway, PermissionDenied, ResourceState, TailraceError
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY, LiveResource
from tailrace_server_api import ServerHooks, Veto

logger = logging.getLogger(__name__)
_Arguments = ParamSpec("_Arguments")

_GROWTH_INTERVAL = 1.0
"""Least time between two calls about the growth of one resource, in seconds."""
_LAST_WORDS = 1.0
"""Time that hooks get to end when they are cancelled at a shutdown, in seconds."""


class _Feed:
    """What is to be told of one resource; the newest state counts, so nothing queues up."""

    __slots__ = ("changed", "ended", "grown", "live")

    def __init__(self, live: LiveResource) -> None:
        self.live = live
        self.grown = False
        self.ended = False
        self.changed = asyncio.Event()


class HookRunner:
    """Calls hooks beside the uploads: of one resource one after the other, of several at the same time.

    A resource has a task only while there is something to tell of it, or was within the last second. Belongs to one
    event loop.
    """

    def __init__(
        self, hooks: ServerHooks | None, timeout: float, veto: Callable[[str, PermissionDenied], Awaitable[None]]
    ) -> None:
        """Call ``hooks``, each for at most ``timeout`` seconds, and ``veto`` with the id of what must not grow."""
        self._hooks = hooks
        self._timeout = timeout
        self._veto = veto
        self._feeds: dict[str, _Feed] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._creations: set[asyncio.Future[None]] = set()
        self._going_away = False
        self._closing = False
        # An application that does not care for growth costs nothing while its resources grow.
        self._tells_growth = hooks is not None and type(hooks).on_growth is not ServerHooks.on_growth

    async def created(self, live: LiveResource) -> None:
        """Tell of a new resource.

        Raises:
            PermissionDenied: It must not exist.
            GoingAway: The server shuts down, and does not wait for the answer.
        """
        if self._hooks is None:
            return
        if self._going_away:
            raise GoingAway(retry_after=GOING_AWAY_RETRY)
        asking = asyncio.ensure_future(
            self._call(self._hooks.on_created, live, live.status(), live.descriptor.principal)
        )
        self._creations.add(asking)
        try:
            await asking
        except Veto as veto:
            raise PermissionDenied(_text(veto)) from veto
        except asyncio.CancelledError:
            if self._going_away:
                raise GoingAway(retry_after=GOING_AWAY_RETRY) from None
            raise
        finally:
            self._creations.discard(asking)

    def go_away(self) -> None:
        """Ask about no more creations: who waits for an answer is told that the server shuts down."""
        self._going_away = True
        for asking in self._creations:
            asking.cancel()

    def grown(self, live: LiveResource) -> None:
        """Tell that a resource has grown; returns at once."""
        if self._tells_growth and not self._closing:
            feed = self._feed(live)
            feed.grown = True
            feed.changed.set()

    def ended(self, live: LiveResource) -> None:
        """Tell that a resource has ended; returns at once."""
        if self._hooks is not None:
            feed = self._feed(live)
            feed.ended = True
            feed.changed.set()

    async def close(self) -> None:
        """Let hooks that run come to their end, within the time that each may take; then cancel them. Idempotent."""
        self._closing = True
        for feed in self._feeds.values():
            feed.changed.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._timeout)
        late = set(self._tasks)
        for task in late:
            task.cancel()
        if late:
            logger.warning("%d hooks were cancelled: the server closes", len(late))
            await asyncio.wait(late, timeout=_LAST_WORDS)

    def _feed(self, live: LiveResource) -> _Feed:
        feed = self._feeds.get(live.id)
        if feed is None:
            feed = self._feeds[live.id] = _Feed(live)
            self._keep(asyncio.create_task(self._tell(feed), name=f"tailrace-hooks-{live.id}"))
        feed.live = live
        return feed

    async def _tell(self, feed: _Feed) -> None:
        try:
            await self._tell_growth(feed)
            if feed.ended:
                await self._tell_end(feed.live)
        except Exception:
            # What hooks raise is logged where they are called: this is a defect behind them, and nobody else sees it.
            logger.exception("telling the hooks failed", extra={"resource": feed.live.id})
        finally:
            del self._feeds[feed.live.id]

    async def _tell_growth(self, feed: _Feed) -> None:
        """Return when the resource has ended, or has not grown for a while."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not (feed.ended or self._closing):
            if feed.grown and loop.time() >= due:
                feed.grown = False
                due = loop.time() + _GROWTH_INTERVAL
                await self._ask_growth(feed.live)
                continue
            feed.changed.clear()
            try:
                async with asyncio.timeout_at(due):
                    await feed.changed.wait()
            except TimeoutError:
                if not feed.grown:
                    return

    async def _ask_growth(self, live: LiveResource) -> None:
        assert self._hooks is not None
        try:
            await self._call(self._hooks.on_growth, live, live.status())
        except Veto as veto:
            if live.snapshot.state.terminal or live.deleted:
                logger.warning("a veto came too late: %s", _text(veto), extra={"resource": live.id})
                return
            try:
                await self._veto(live.id, PermissionDenied(_text(veto)))
            except TailraceError:
                logger.exception("a veto could not be carried out", extra={"resource": live.id})

    async def _tell_end(self, live: LiveResource) -> None:
        assert self._hooks is not None
        if self._tells_growth:
            await self._ask_growth(live)
        status = live.status()
        completed = status.state is ResourceState.COMPLETED
        try:
            await self._call(self._hooks.on_completed if completed else self._hooks.on_failed, live, status)
        except Veto as veto:
            logger.warning("a veto came too late: %s", _text(veto), extra={"resource": live.id})

    async def _call(
        self,
        hook: Callable[_Arguments, Awaitable[None]],
        live: LiveResource,
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> None:
        """Let a hook run; what it raises is logged, but for a veto."""

        async def run() -> None:
            await hook(*args, **kwargs)

        name = getattr(hook, "__name__", "a hook")
        # In a task of its own: one that does not let itself be cancelled keeps nobody waiting.
        task = self._keep(asyncio.create_task(run(), name=f"tailrace-{name}-{live.id}"))
        try:
            await asyncio.wait((task,), timeout=self._timeout)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            logger.error("%s took longer than %g s", name, self._timeout, extra={"resource": live.id})
        elif task.cancelled():
            logger.error("%s was cancelled", name, extra={"resource": live.id})
        elif (error := task.exception()) is not None:
            if isinstance(error, Veto):
                raise error
            logger.error("%s failed", name, exc_info=error, extra={"resource": live.id})

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Somebody has looked at it, or has given up on it.
            task.exception()


def _text(veto: Veto) -> str:
    return str(veto) or "refused by the server"
