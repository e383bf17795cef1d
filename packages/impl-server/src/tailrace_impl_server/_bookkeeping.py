"""What follows from every newer state of a resource."""

from __future__ import annotations

from tailrace_common_api import ContextEventKind, ResourceState, Visibility
from tailrace_impl_server._catalog_follower import CatalogFollower
from tailrace_impl_server._context_events import ContextEvents
from tailrace_impl_server._live_resource import LiveResource
from tailrace_impl_server._quotas import Quotas
from tailrace_impl_server._running_tasks import RunningTasks
from tailrace_server_api import Snapshot


class Bookkeeper:
    """Keeps quotas and events as the resources in use are. Belongs to one event loop."""

    def __init__(self, quotas: Quotas, events: ContextEvents, follower: CatalogFollower, tasks: RunningTasks) -> None:
        self._quotas = quotas
        self._events = events
        self._follower = follower
        self._tasks = tasks

    def loaded(self, live: LiveResource) -> None:
        """Make good what was missed, when a resource turns out to have ended."""
        snapshot = live.snapshot
        if snapshot.state.terminal and self._quotas.unfinished(live.id):
            self._quotas.end(live.id, snapshot.size)
            self._tasks.start(self._follower.record(live.id, snapshot.state, snapshot.size), "tailrace-record")

    def published(self, live: LiveResource, before: Snapshot) -> None:
        """Keep account of a newer state, and tell who watches the context."""
        snapshot = live.snapshot
        if snapshot.state.terminal:
            self._quotas.end(live.id, snapshot.size)
        if snapshot.state is before.state or live.hidden:
            return
        if live.descriptor.visibility is Visibility.ATOMIC and snapshot.state is ResourceState.COMPLETED:
            # It comes into being for others in this moment.
            self._events.about(ContextEventKind.CREATED, live)
        self._events.about(ContextEventKind.STATUS_CHANGED, live)
