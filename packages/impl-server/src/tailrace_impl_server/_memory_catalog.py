"""A catalog in the memory of the process."""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import replace

from tailrace_common_api import ListFilter, ResourceState, Visibility
from tailrace_server_api import Catalog, CatalogEntry, ContextEntry, Usage


class MemoryCatalog(Catalog):
    """Keeps entries in order of id; everything is gone with the process."""

    def __init__(self) -> None:
        self._entries: dict[str, CatalogEntry] = {}
        self._ids: list[str] = []
        self._keys: dict[tuple[str, str], str] = {}
        self._contexts: dict[str, ContextEntry] = {}

    async def start(self) -> None:
        self._entries.clear()
        self._ids.clear()
        self._keys.clear()
        self._contexts.clear()

    async def close(self) -> None:
        pass

    async def insert(self, entry: CatalogEntry) -> str | None:
        descriptor = entry.descriptor
        if descriptor.id in self._entries:
            return None
        if descriptor.idempotency_key is not None:
            holder = self._keys.setdefault((descriptor.principal, descriptor.idempotency_key), descriptor.id)
            if holder != descriptor.id:
                return holder
        self._entries[descriptor.id] = entry
        insort(self._ids, descriptor.id)
        return None

    async def get(self, id: str) -> CatalogEntry | None:
        return self._entries.get(id)

    async def find_key(self, principal: str, key: str) -> CatalogEntry | None:
        holder = self._keys.get((principal, key))
        return None if holder is None else self._entries[holder]

    async def set_state(self, id: str, state: ResourceState, ended_at: float | None, *, size: int = 0) -> None:
        entry = self._entries.get(id)
        if entry is not None and not entry.state.terminal:
            self._entries[id] = replace(entry, state=state, ended_at=ended_at, size=size)

    async def list(self, filter: ListFilter, *, after: str | None, limit: int) -> tuple[CatalogEntry, ...]:
        found: list[CatalogEntry] = []
        for number in range(0 if after is None else bisect_right(self._ids, after), len(self._ids)):
            entry = self._entries[self._ids[number]]
            if _selects(filter, entry):
                found.append(entry)
                if len(found) == limit:
                    break
        return tuple(found)

    async def unfinished(self) -> tuple[str, ...]:
        return tuple(name for name, entry in self._entries.items() if not entry.state.terminal)

    async def ended_before(self, state: ResourceState, before: float, *, limit: int) -> tuple[str, ...]:
        ended = [
            (entry.ended_at, name)
            for name, entry in self._entries.items()
            if entry.state is state and entry.ended_at is not None and entry.ended_at < before
        ]
        return tuple(name for _, name in sorted(ended)[:limit])

    async def known(self) -> frozenset[str]:
        return frozenset(self._entries)

    async def usage(self) -> tuple[Usage, ...]:
        sums: dict[str | None, tuple[int, int]] = {}
        for entry in self._entries.values():
            context = entry.descriptor.metadata.context
            resources, size = sums.get(context, (0, 0))
            sums[context] = (resources + 1, size + entry.size)
        return tuple(Usage(context, *found) for context, found in sums.items())

    async def unfinished_in(self, context: str) -> tuple[str, ...]:
        return tuple(
            name
            for name, entry in self._entries.items()
            if entry.descriptor.metadata.context == context and not entry.state.terminal
        )

    async def insert_context(self, entry: ContextEntry) -> None:
        self._contexts.setdefault(entry.id, entry)

    async def get_context(self, id: str) -> ContextEntry | None:
        return self._contexts.get(id)

    async def close_context(self, id: str, closed_at: float) -> None:
        entry = self._contexts.get(id)
        if entry is not None and entry.closed_at is None:
            self._contexts[id] = replace(entry, closed_at=closed_at)

    async def open_contexts(self) -> int:
        return sum(entry.closed_at is None for entry in self._contexts.values())

    async def delete_empty_contexts(self, before: float, *, limit: int) -> tuple[str, ...]:
        owning = {entry.descriptor.metadata.context for entry in self._entries.values()}
        outlived = [
            name
            for name, entry in self._contexts.items()
            if entry.closed_at is not None and entry.closed_at < before and name not in owning
        ][:limit]
        for name in outlived:
            del self._contexts[name]
        return tuple(outlived)

    async def delete(self, id: str) -> None:
        entry = self._entries.pop(id, None)
        if entry is None:
            return
        del self._ids[bisect_right(self._ids, id) - 1]
        descriptor = entry.descriptor
        if descriptor.idempotency_key is not None:
            del self._keys[descriptor.principal, descriptor.idempotency_key]


def _selects(filter: ListFilter, entry: CatalogEntry) -> bool:
    descriptor = entry.descriptor
    metadata = descriptor.metadata
    if descriptor.visibility is Visibility.ATOMIC and entry.state is not ResourceState.COMPLETED:
        return False
    return (
        (filter.state is None or entry.state is filter.state)
        and (filter.context is None or metadata.context == filter.context)
        and (filter.created_from is None or descriptor.created_at >= filter.created_from)
        and (filter.created_before is None or descriptor.created_at < filter.created_before)
        and all(metadata.labels.get(key) == value for key, value in filter.labels.items())
    )
