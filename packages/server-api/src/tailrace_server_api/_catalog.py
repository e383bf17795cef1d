"""What is needed to find resources; it follows the storage and can be rebuilt from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tailrace_common_api import ListFilter, ResourceState
from tailrace_server_api._storage import Descriptor


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A resource as the catalog knows it."""

    descriptor: Descriptor
    """What is fixed about the resource."""
    state: ResourceState
    """State; INITIATED stands for every state that is not terminal until the catalog is told otherwise."""
    ended_at: float | None = None
    """When it became terminal, seconds since the Unix epoch."""


class Catalog(ABC):
    """Metadata, labels, contexts, idempotency keys and what listing needs.

    All methods belong to one event loop and never block it; each change is committed when its method returns.
    Concurrent callers never see "database is locked" or its like. Raises ``StorageFailure`` when the catalog fails.
    """

    @abstractmethod
    async def start(self) -> None:
        """Open the catalog; called once, before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Commit and release everything. Idempotent."""

    @abstractmethod
    async def insert(self, entry: CatalogEntry) -> str | None:
        """Add a resource.

        Returns:
            ``None`` when it was added (or stood there already under the same id); the id of the resource that holds
            the same idempotency key of the same principal when there is one, and then nothing was added.
        """

    @abstractmethod
    async def get(self, id: str) -> CatalogEntry | None:
        """Return the entry of a resource; ``None`` when there is none."""

    @abstractmethod
    async def find_key(self, principal: str, key: str) -> CatalogEntry | None:
        """Return the resource that ``principal`` created under an idempotency key; ``None`` when there is none."""

    @abstractmethod
    async def set_state(self, id: str, state: ResourceState, ended_at: float | None) -> None:
        """Record a state; an unknown id is ignored, and a terminal state is never replaced."""

    @abstractmethod
    async def list(self, filter: ListFilter, *, after: str | None, limit: int) -> tuple[CatalogEntry, ...]:
        """Return entries in order of id, which is the order of creation.

        Atomic resources that are not COMPLETED are left out. Costs no more for a later page than for the first.

        Args:
            filter: What to select.
            after: Id behind which to start; ``None`` for the first page.
            limit: Most entries to return, at least 1.
        """

    @abstractmethod
    async def unfinished(self) -> tuple[str, ...]:
        """Return the ids of all resources that are not in a terminal state."""

    @abstractmethod
    async def ended_before(self, state: ResourceState, before: float, *, limit: int) -> tuple[str, ...]:
        """Return ids of resources that reached a terminal ``state`` before a time, at most ``limit``, oldest first."""

    @abstractmethod
    async def known(self) -> frozenset[str]:
        """Return the ids of all entries: what recovery compares with the storage."""

    @abstractmethod
    async def delete(self, id: str) -> None:
        """Remove an entry and its idempotency key; an unknown id is ignored."""
