"""What the parts of a server share."""

from __future__ import annotations

from dataclasses import dataclass, field

from tailrace_common_api import GoingAway
from tailrace_impl_common import IdGenerator
from tailrace_impl_server._catalog_follower import CatalogFollower
from tailrace_impl_server._context_events import ContextEvents
from tailrace_impl_server._live_resource import GOING_AWAY_RETRY
from tailrace_impl_server._prometheus import PrometheusTelemetry
from tailrace_impl_server._quotas import Quotas
from tailrace_impl_server._registry import Registry
from tailrace_impl_server._retention import Sweeper
from tailrace_impl_server._running_tasks import RunningTasks
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._storage_health import StorageHealth
from tailrace_server_api import Catalog, EventBus, Storage


@dataclass(slots=True, kw_only=True)
class ServerParts:
    """Made and closed by the manager; each part uses what it needs."""

    settings: ServerSettings
    storage: Storage
    catalog: Catalog
    follower: CatalogFollower
    bus: EventBus
    registry: Registry
    sweeper: Sweeper
    quotas: Quotas
    context_events: ContextEvents
    telemetry: PrometheusTelemetry
    storage_health: StorageHealth = field(default_factory=StorageHealth)
    tasks: RunningTasks = field(default_factory=RunningTasks)
    ids: IdGenerator = field(default_factory=IdGenerator)
    closing: bool = False
    """Whether the server shuts down."""

    def refuse_when_closing(self) -> None:
        """Raise ``GoingAway`` if the server shuts down."""
        if self.closing:
            raise GoingAway(retry_after=GOING_AWAY_RETRY)
