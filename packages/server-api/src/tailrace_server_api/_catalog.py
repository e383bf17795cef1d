"""What is needed to find resources; it follows the storage and can be rebuilt from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
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
    size: int = 0
    """Size at its end in bytes; 0 before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextEntry:
    """A context as the catalog knows it."""

    id: str
    """Context id."""
    attributes: Mapping[str, str]
    """What its creator said of it."""
    created_at: float
    """Time of creation, seconds since the Unix epoch."""
    closed_at: float | None = None
    """When it was closed; ``None`` while it is open."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the resources of one context, or those without one, come to."""

    context: str | None
    """Context id; ``None`` for the resources without one."""
    resources: int
    """Number of resources."""
    bytes: int
    """Sum of the sizes of those that have ended."""


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
    async def set_state(self, id: str, state: ResourceState, ended_at: float | None, *, size: int = 0) -> None:
        """Record a state; an unknown id is ignored, and a terminal state is never replaced.

        Args:
            id: Resource id.
            state: The new state.
            ended_at: When it became terminal; ``None`` if it has not.
            size: Size at the end in bytes; 0 for a state that is not terminal.
        """

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

    @abstractmethod
    async def usage(self) -> tuple[Usage, ...]:
        """Return what each context that has resources comes to, and what the resources without one come to."""

    @abstractmethod
    async def unfinished_in(self, context: str) -> tuple[str, ...]:
        """Return the ids of all resources of a context that are not in a terminal state."""

    @abstractmethod
    async def insert_context(self, entry: ContextEntry) -> None:
        """Add a context; one that is there already under the same id is left as it is."""

    @abstractmethod
    async def get_context(self, id: str) -> ContextEntry | None:
        """Return a context; ``None`` when there is none."""

    @abstractmethod
    async def close_context(self, id: str, closed_at: float) -> None:
        """Record that a context was closed; an unknown id is ignored, and an earlier closing stays."""

    @abstractmethod
    async def open_contexts(self) -> int:
        """Return how many contexts are open."""

    @abstractmethod
    async def delete_empty_contexts(self, before: float, *, limit: int) -> tuple[str, ...]:
        """Remove contexts that were closed before a time and have no resources.

        Args:
            before: Seconds since the Unix epoch.
            limit: Most contexts to remove, at least 1.

        Returns:
            The ids of those that were removed; fewer than ``limit`` when no more are left.
        """
