"""The server that `tailrace serve` and others run behind their transports."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

from tailrace_common_api import ConfigurationError
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._loading import load_named
from tailrace_impl_server._local_events import LocalEventBus
from tailrace_impl_server._manager import Manager
from tailrace_impl_server._memory_catalog import MemoryCatalog
from tailrace_impl_server._memory_storage import MemoryStorage
from tailrace_impl_server._recovery import recover
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._sqlite_catalog import SqliteCatalog
from tailrace_impl_server._token_authenticator import TokenAuthenticator
from tailrace_server_api import (
    Authenticator,
    Authorizer,
    Catalog,
    Damage,
    RecordEnds,
    ResourceManager,
    ServerHooks,
    Storage,
)


class ManagedServer:
    """A manager with its storage, started and closed together. Belongs to one event loop.

    Used as ``await server.start()`` … ``await server.close()``, or as an async context manager.
    """

    def __init__(self, manager: Manager, storage: Storage, catalog: Catalog) -> None:
        self._manager = manager
        self._storage = storage
        self._catalog = catalog

    @property
    def manager(self) -> ResourceManager:
        """What transports talk to, between start and close."""
        return self._manager

    async def start(self) -> None:
        """Take hold of the data and recover what was interrupted; called once.

        Raises:
            ConfigurationError: The data is in use by another server, or of a format that is not understood.
            StorageFailure: The data cannot be read.
        """
        await self._manager.start()

    def drain(self) -> None:
        """Take no new work from here on; what runs goes on. The first step of a shutdown."""
        self._manager.drain()

    async def close(self) -> None:
        """Tell everyone ``GoingAway``, announce what is stored and release the data. Idempotent."""
        await self._manager.close()

    async def verify(
        self, ids: Iterable[str] = (), *, repair: bool = False
    ) -> AsyncGenerator[tuple[str, Damage | None], None]:
        """Re-read stored resources against their digests: instead of starting and closing, once.

        Yields ids with what is damaged, and after the last damage of a resource, if there is any, its id with ``None``.
        After a repair the catalog follows what is stored.

        Args:
            ids: Which resources; all of them if there are none.
            repair: Whether to make good what can be proven from the rest; see :meth:`Storage.verify`.

        Raises:
            ConfigurationError: The data is in use by another server, or of a format that is not understood.
            NotFound: There is no resource under one of the ids.
            StorageFailure: The data cannot be read.
        """
        await self._storage.start()
        try:
            wanted = list(ids) or sorted([stored async for stored in self._storage.ids()])
            for resource in wanted:
                async with aclosing(self._storage.verify(resource, repair=repair)) as found:
                    async for damage in found:
                        yield resource, damage
                yield resource, None
            if repair:
                await self._catalog.start()
                try:
                    await recover(self._storage, self._catalog, lambda *_: None)
                finally:
                    await self._catalog.close()
        finally:
            await self._storage.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def create_manager(
    data: Path | None,
    options: Mapping[str, object],
    *,
    hooks: ServerHooks | None = None,
    authenticator: Authenticator | None = None,
    authorizer: Authorizer | None = None,
    records: RecordEnds | Mapping[str, object] | None = None,
) -> ManagedServer:
    """Return a server that is not started yet.

    Args:
        data: Folder in which everything is kept; made if it is not there. ``None`` keeps everything in memory.
        options: Fields of :class:`ServerSettings` by name, as values or as text.
        hooks: What is called as resources come into being and end; instead of the setting of that name.
        authenticator: Who finds out who callers are; instead of the settings ``authenticator`` and ``tokens``.
        authorizer: Who decides what they may do; instead of the setting of that name.
        records: Ends of record streams, or their declarations: the tables ``databases``, ``collections``, ``sources``
            and ``queues``.

    Raises:
        ConfigurationError: An option is unknown or has a value that cannot work.
    """
    settings = ServerSettings.from_options(options)
    if hooks is None and settings.hooks is not None:
        hooks = load_named(settings.hooks, ServerHooks, field="hooks")
    if authenticator is None:
        authenticator = _authenticator(settings)
    if authorizer is None and settings.authorizer is not None:
        authorizer = load_named(settings.authorizer, Authorizer, field="authorizer")  # type: ignore[type-abstract]  # an abstract class names what is wanted
    storage: Storage
    catalog: Catalog
    if data is None:
        storage, catalog = MemoryStorage(max_bytes=settings.memory_bytes), MemoryCatalog()
    else:
        storage = FilesystemStorage(data, durability=settings.durability, writer_threads=settings.writer_threads)
        catalog = SqliteCatalog(data / "catalog.sqlite", durability=settings.durability)
    manager = Manager(
        storage,
        catalog,
        LocalEventBus(),
        settings,
        hooks=hooks,
        authenticator=authenticator,
        authorizer=authorizer,
        records=records if isinstance(records, RecordEnds) else _ends(records or {}, data, settings),
    )
    return ManagedServer(manager, storage, catalog)


def _ends(tables: Mapping[str, object], data: Path | None, settings: ServerSettings) -> RecordEnds:
    if not tables:
        return RecordEnds()
    # Databases and what is in them take a while to import, and most servers that start have none of it.
    from tailrace_impl_server._record_declarations import declared_ends

    return declared_ends(tables, data, settings)


def _authenticator(settings: ServerSettings) -> Authenticator | None:
    if settings.authenticator is None:
        return None if settings.tokens is None else TokenAuthenticator(settings.tokens)
    if settings.tokens is not None:
        raise ConfigurationError(field="authenticator", problem="not together with a file of tokens")
    return load_named(settings.authenticator, Authenticator, field="authenticator")  # type: ignore[type-abstract]  # an abstract class names what is wanted
