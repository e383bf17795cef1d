"""What was read of resources a moment ago, so that asking for it again asks no disk."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class RecentlyRead(Generic[ValueT]):
    """Values by resource id, those that were not asked for for longest dropped first. Belongs to one event loop.

    Whoever changes what is stored forgets it before and after: what was read in between is not kept.
    """

    def __init__(self, capacity: int) -> None:
        """Keep up to ``capacity`` values."""
        self._capacity = capacity
        self._values: OrderedDict[str, ValueT] = OrderedDict()
        self._forgotten = 0

    @property
    def forgotten(self) -> int:
        """How often something was forgotten; to be taken before what :meth:`keep` is given is read."""
        return self._forgotten

    def get(self, id: str) -> ValueT | None:
        """Return what is kept of a resource."""
        value = self._values.get(id)
        if value is not None:
            self._values.move_to_end(id)
        return value

    def keep(self, id: str, value: ValueT, forgotten: int) -> None:
        """Keep what was read, unless something was forgotten since :attr:`forgotten` was ``forgotten``."""
        if forgotten != self._forgotten:
            return
        self._values[id] = value
        self._values.move_to_end(id)
        if len(self._values) > self._capacity:
            self._values.popitem(last=False)

    def forget(self, id: str) -> None:
        """Forget a resource, because what is stored of it is about to change or has just changed."""
        self._forgotten += 1
        self._values.pop(id, None)
