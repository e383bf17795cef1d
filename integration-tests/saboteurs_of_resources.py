"""Defects around resources and their status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sabotage import executed, saboteur


@saboteur("RES-3", "DWN-1", trap="status-order")
def older_status_replaces_newer() -> None:
    from tailrace_impl_server import _live_resource

    real: Callable[..., Any] = _live_resource.LiveResource.changed

    async def changed(self: Any, version: int) -> Any:
        before = self._snapshot
        snapshot = await real(self, version)
        if snapshot.state.terminal and before.version < snapshot.version:
            executed()
            self._snapshot = before
        return snapshot

    _live_resource.LiveResource.changed = changed  # type: ignore[method-assign]
