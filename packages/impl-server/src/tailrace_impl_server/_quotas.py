"""What resources may come to: how many there are, and how many bytes.

The account is kept in memory, so that every chunk can be held against it. What has ended is summed up by the catalog at
the start; what has not, is charged here for as long as that lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from tailrace_common_api import QuotaExceeded
from tailrace_impl_server._settings import ServerSettings
from tailrace_server_api import Usage

RESOURCE_BYTES = "bytes per resource"
CONTEXT_BYTES = "bytes per context"
CONTEXT_RESOURCES = "resources per context"
STORAGE_BYTES = "bytes in storage"
UPLOADS = "unfinished uploads"
CONTEXTS = "open contexts"


class _Scope:
    """The resources that share a limit of bytes."""

    __slots__ = ("announced", "limit", "maximum", "reserved", "resources", "used")

    def __init__(self, limit: str, maximum: int) -> None:
        self.limit = limit
        self.maximum = maximum
        self.resources = 0
        self.used = 0
        """Bytes of all resources, with those that have arrived and are not announced."""
        self.reserved = 0
        """Bytes that uploaders were granted and have not sent."""
        self.announced = 0
        """Announced bytes of all resources."""

    @property
    def free(self) -> int:
        return max(0, self.maximum - self.used - self.reserved)


class Charge:
    """What an unfinished upload is charged with: what it has stored, and the window that it was granted.

    A granted window is reserved: it can be used, whatever others do. Only a window that nothing came in for a while
    can be taken back, and only when somebody waits for room.
    """

    __slots__ = ("_announced", "_ended", "_moved", "_quotas", "_room", "_scopes", "_until", "_used", "context")

    def __init__(self, quotas: Quotas, context: str | None, scopes: tuple[_Scope, ...], size: int) -> None:
        self.context = context
        """Context of the resource."""
        self._quotas = quotas
        self._scopes = scopes
        self._used = self._until = self._announced = 0
        self._moved = self._ended = False
        self._room: Callable[[], object] | None = None
        self.settle(size)

    def open(self, size: int, room: Callable[[], object]) -> None:
        """Begin a session at ``size``; ``room`` is called when there is room again for one that was refused it."""
        self.settle(size)
        self._room = room
        self._moved = True

    def settle(self, size: int) -> None:
        """Charge ``size`` bytes and nothing else: the session has ended."""
        if self._ended:
            return
        self._room = None
        self._quotas.unblock(self)
        for scope in self._scopes:
            scope.reserved -= self._until - self._used
            scope.used += size - self._used
            scope.announced += size - self._announced
        released = size < self._until
        self._used = self._until = self._announced = size
        if released:
            self._quotas.wake_blocked()

    def end(self, size: int) -> None:
        """Charge ``size`` bytes for good: the resource has ended. What a session still does is not charged."""
        self.settle(size)
        self._ended = True

    def announce(self, size: int) -> None:
        """Take note of what is announced."""
        if self._ended:
            return
        for scope in self._scopes:
            scope.announced += size - self._announced
        self._announced = size

    def reserve(self, until: int) -> int:
        """Reserve room up to offset ``until``, or as far as there is some, and return the offset to be granted.

        One byte more than is reserved is granted when the quota is used up: an uploader with more is then refused
        instead of waiting for ever. While the rest of the quota is reserved for others, the uploader waits.
        """
        missing = until - self._until
        if missing <= 0 or self._ended:
            return self._until
        granted = min(missing, *(scope.free for scope in self._scopes))
        self._until += granted
        for scope in self._scopes:
            scope.reserved += granted
        if granted == missing:
            return self._until
        if any(scope.used >= scope.maximum for scope in self._scopes):
            self._quotas.unblock(self)
            return self._until + 1
        self._quotas.block(self)
        return self._until

    def take(self, end: int) -> None:
        """Charge the bytes up to offset ``end``, which have arrived.

        Raises:
            QuotaExceeded: They were not reserved, and there is no room; nothing has changed.
        """
        if self._ended:
            return
        if end > self._until:
            missing = end - self._until
            for scope in self._scopes:
                if scope.free < missing:
                    actual = scope.used + scope.reserved + missing
                    raise QuotaExceeded(limit=scope.limit, maximum=scope.maximum, actual=actual)
            for scope in self._scopes:
                scope.reserved += missing
            self._until = end
        for scope in self._scopes:
            scope.used += end - self._used
            scope.reserved -= end - self._used
        self._used = end
        self._moved = True
        if self._quotas.blocked and any(scope.used >= scope.maximum for scope in self._scopes):
            self._quotas.wake_blocked()

    def room(self) -> None:
        """Let the session ask again."""
        if self._room is not None:
            self._room()

    def lapse(self) -> bool:
        """Take back the reservation if nothing has come since the last time; return whether there was one."""
        idle, self._moved = not self._moved, False
        unused = self._until - self._used
        if not idle or not unused:
            return False
        for scope in self._scopes:
            scope.reserved -= unused
        self._until = self._used
        return True

    @property
    def figures(self) -> tuple[int, int, int]:
        """Announced, used and reserved bytes."""
        return self._announced, self._used, self._until - self._used


class Quotas:
    """The account of a server. Belongs to one event loop.

    Counts what this process does, and what the catalog told it at the start.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._storage = _Scope(STORAGE_BYTES, settings.max_storage_bytes)
        self._contexts: dict[str, _Scope] = {}
        self._unfinished: dict[str, Charge] = {}
        self._waking = False
        self.blocked: set[Charge] = set()
        """Uploads that wait for room that is reserved for others."""

    def load(self, usages: Iterable[Usage], unfinished: Iterable[tuple[str, str | None, int]]) -> None:
        """Begin with what is there.

        Args:
            usages: How many resources there are, and the bytes of those that have ended.
            unfinished: Id, context and size of the others.
        """
        for usage in usages:
            for scope in self._scopes(usage.context):
                scope.resources += usage.resources
                scope.used += usage.bytes
                scope.announced += usage.bytes
        for left, context, size in unfinished:
            self._unfinished[left] = Charge(self, context, self._scopes(context), size)

    def begin(self, id: str, context: str | None, length: int | None) -> Charge:
        """Count a resource that is about to be created.

        A declared length is compared with what is free and not reserved: an uploader may be slow, or lie.

        Raises:
            QuotaExceeded: There is no room for it; nothing is counted.
        """
        if len(self._unfinished) >= self._settings.max_uploads:
            raise QuotaExceeded(limit=UPLOADS, maximum=self._settings.max_uploads, actual=len(self._unfinished) + 1)
        scopes = self._scopes(context)
        try:
            if context is not None and scopes[1].resources >= self._settings.max_context_resources:
                raise QuotaExceeded(
                    limit=CONTEXT_RESOURCES,
                    maximum=self._settings.max_context_resources,
                    actual=scopes[1].resources + 1,
                )
            for scope in reversed(scopes):
                if length is not None and scope.used + length > scope.maximum:
                    raise QuotaExceeded(limit=scope.limit, maximum=scope.maximum, actual=scope.used + length)
        except QuotaExceeded:
            self._drop_if_empty(context)
            raise
        for scope in scopes:
            scope.resources += 1
        charge = self._unfinished[id] = Charge(self, context, scopes, 0)
        return charge

    def charge(self, id: str, context: str | None, size: int) -> Charge:
        """Return the charge of an unfinished upload; made if another process has created it."""
        found = self._unfinished.get(id)
        if found is None:
            scopes = self._scopes(context)
            for scope in scopes:
                scope.resources += 1
            found = self._unfinished[id] = Charge(self, context, scopes, size)
        return found

    def unfinished(self, id: str) -> bool:
        """Return whether the resource counts as unfinished."""
        return id in self._unfinished

    def end(self, id: str, size: int) -> None:
        """Take note that a resource has ended with ``size`` bytes; idempotent."""
        charge = self._unfinished.pop(id, None)
        if charge is not None:
            charge.end(size)

    def remove(self, id: str, context: str | None, size: int) -> None:
        """Take note that a resource is gone; one that had ended had ``size`` bytes."""
        charge = self._unfinished.pop(id, None)
        if charge is not None:
            charge.end(0)
            size = 0
        for scope in self._scopes(context):
            scope.resources -= 1
            scope.used -= size
            scope.announced -= size
        self._drop_if_empty(context)
        self.wake_blocked()

    def in_context(self, context: str) -> tuple[int, int]:
        """Return number and announced bytes of the resources of a context."""
        scope = self._contexts.get(context)
        return (0, 0) if scope is None else (scope.resources, scope.announced)

    @property
    def uploads(self) -> int:
        """Unfinished uploads."""
        return len(self._unfinished)

    @property
    def storage_bytes(self) -> int:
        """Announced bytes of all resources."""
        return self._storage.announced

    def lapse_idle(self) -> None:
        """Take back what idle uploads have reserved since the last call and before, if somebody waits for room."""
        lapsed = [charge.lapse() for charge in self._unfinished.values()] if self.blocked else ()
        if any(lapsed):
            self.wake_blocked()

    def block(self, charge: Charge) -> None:
        """Call the charge's session when there is room."""
        self.blocked.add(charge)

    def unblock(self, charge: Charge) -> None:
        """Do not call the charge's session."""
        self.blocked.discard(charge)

    def wake_blocked(self) -> None:
        """Let those ask again who wait for room, once for all that changes in this turn of the event loop."""
        if self.blocked and not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        waiting, self.blocked = self.blocked, set()
        for charge in waiting:
            charge.room()

    def _scopes(self, context: str | None) -> tuple[_Scope, ...]:
        if context is None:
            return (self._storage,)
        scope = self._contexts.get(context)
        if scope is None:
            scope = self._contexts[context] = _Scope(CONTEXT_BYTES, self._settings.max_context_bytes)
        return (self._storage, scope)

    def _drop_if_empty(self, context: str | None) -> None:
        if context is not None and not self._contexts[context].resources:
            del self._contexts[context]
