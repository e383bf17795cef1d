"""Defects around quotas, contexts and hooks."""

from __future__ import annotations

import asyncio
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("LIM-1")
def bytes_beyond_a_quota_are_taken() -> None:
    from tailrace_impl_server import _quotas

    def reserve(self: Any, until: int) -> int:
        executed()
        return until

    def take(self: Any, end: int) -> None:
        for scope in self._scopes:
            scope.used += end - self._used
        self._used = end

    put(_quotas.Charge, "reserve", reserve)
    put(_quotas.Charge, "take", take)


@saboteur("LIM-1")
def what_is_deleted_goes_on_counting() -> None:
    from tailrace_impl_server import _quotas

    def remove(self: Any, id: str, context: str | None, size: int) -> None:
        executed()
        self._unfinished.pop(id, None)

    put(_quotas.Quotas, "remove", remove)


@saboteur("LIM-1")
def windows_are_not_given_back() -> None:
    from tailrace_impl_server import _quotas

    def settle(self: Any, size: int) -> None:
        executed()
        for scope in self._scopes:
            scope.used += size - self._used
            scope.announced += size - self._announced
        self._used = self._announced = size
        self._until = max(self._until, size)

    put(_quotas.Charge, "settle", settle)


@saboteur("LIM-1")
def who_finds_all_reserved_is_forgotten() -> None:
    from tailrace_impl_server import _quotas

    def block(self: Any, charge: Any) -> None:
        executed()

    put(_quotas.Quotas, "block", block)


@saboteur("LIM-1", cell="websocket-filesystem")
def usage_is_forgotten_at_a_restart() -> None:
    from tailrace_impl_server import _quotas

    real = _quotas.Quotas.load

    def load(self: Any, usages: Any, unfinished: Any) -> None:
        executed()
        real(self, (), ())

    put(_quotas.Quotas, "load", load)


@saboteur("LIM-1")
def requests_that_end_go_on_counting() -> None:
    from tailrace_impl_server import _admission

    def leave(self: Any, *exc: object) -> None:
        executed()
        self._inner.__exit__(*exc)

    put(_admission._RunningRequest, "__exit__", leave)


@saboteur("CTX-1")
def closing_a_context_leaves_its_uploads() -> None:
    from tailrace_impl_server import _contexts

    async def end_uploads(self: Any, context: str, ids: tuple[str, ...]) -> None:
        executed()

    put(_contexts.Contexts, "_end_uploads", end_uploads)


@saboteur("CTX-1")
def any_context_will_do() -> None:
    from tailrace_impl_server import _uploads

    async def check(catalog: Any, context: str) -> None:
        executed()

    put(_uploads, "check_open", check)


@saboteur("CTX-1")
def the_oldest_known_event_is_skipped() -> None:
    from tailrace_impl_server import _context_events

    real = _context_events._Ring.behind

    def behind(self: Any, sequence: int) -> Any:
        executed()
        if self.events and sequence < self.events[0].sequence:
            sequence = self.events[0].sequence
        return real(self, sequence)

    put(_context_events._Ring, "behind", behind)


@saboteur("CTX-1")
def what_is_refused_is_told_to_nobody() -> None:
    from tailrace_impl_server import _context_events

    def refused(self: Any, context: str, error: Any) -> None:
        executed()

    put(_context_events.ContextEvents, "refused", refused)


@saboteur("HOO-1")
def a_veto_is_only_logged() -> None:
    from tailrace_impl_server import _hooks
    from tailrace_server_api import Veto

    real = _hooks.HookRunner._call

    async def call(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            await real(self, *args, **kwargs)
        except Veto:
            executed()

    put(_hooks.HookRunner, "_call", call)


@saboteur("HOO-1")
def growth_is_told_with_every_checkpoint() -> None:
    from tailrace_impl_server import _hooks

    def grown(self: Any, live: Any) -> None:
        executed()
        self._keep(asyncio.create_task(self._ask_growth(live)))

    put(_hooks.HookRunner, "grown", grown)


@saboteur("HOO-1")
def a_hook_that_hangs_is_waited_for() -> None:
    from tailrace_impl_server import _hooks

    real = _hooks.HookRunner.__init__

    def init(self: Any, hooks: Any, timeout: float, veto: Any) -> None:
        executed()
        # Not longer than the server takes to close in the end.
        real(self, hooks, 40.0, veto)

    put(_hooks.HookRunner, "__init__", init)
