"""Who asks, and what they may do."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

EVERY_CONTEXT = None
"""A principal that is not bound to one context."""


class Operation(enum.Enum):
    """What access is given for; the values are the names of scopes."""

    UPLOAD = "upload"
    """Create resources, and continue those whose upload token one has."""
    READ = "read"
    """Read resources and their statuses."""
    LIST = "list"
    """Find resources."""
    DELETE = "delete"
    """Delete resources."""
    CONTEXTS = "contexts"
    """Create, look at and close contexts."""
    RECORDS = "records"
    """Use record streams."""
    METRICS = "metrics"
    """Read the metrics of the server."""


ALL_OPERATIONS = frozenset(Operation)
"""What somebody may do who may do everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a caller shows; nothing of it is proven yet, but for certificates."""

    token: str | None = field(default=None, repr=False)
    """Bearer token; ``None`` for none."""
    certificate_names: tuple[str, ...] = ()
    """Names in the certificate of the caller, which the transport has checked, the common name first."""
    peer: str = ""
    """Address of the caller, for the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody who is known."""

    name: str
    """Name; empty for an anonymous caller. Idempotency keys belong to it."""
    operations: frozenset[Operation] = ALL_OPERATIONS
    """What it may do."""
    context: str | None = EVERY_CONTEXT
    """Id of the only context in which it may do so; ``None``: in all, and without one."""


class Authenticator(ABC):
    """Finds out who a caller is. Belongs to one event loop."""

    @abstractmethod
    async def start(self) -> None:
        """Prepare; called once, before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything; idempotent."""

    @abstractmethod
    async def authenticate(self, credentials: Credentials) -> Principal:
        """Return who shows ``credentials``; called for every request, so it should be quick.

        Raises:
            Unauthenticated: They prove nothing. The text goes to the caller and must not say what would have.
        """


class Authorizer(ABC):
    """Decides what a principal may do. Belongs to one event loop."""

    @abstractmethod
    async def authorize(
        self, principal: Principal, operation: Operation, *, context: str | None, id: str | None
    ) -> None:
        """Return if ``principal`` may do this; called before anything is done, so it should be quick.

        Args:
            principal: Who asks.
            operation: What it wants to do.
            context: Context that is concerned; ``None`` for none, and for everything in a listing.
            id: Resource that is concerned; ``None`` for a new one and for listings.

        Raises:
            PermissionDenied: It may not, and may know that.
            NotFound: It may not, and is not to know that there is such a resource.
        """
