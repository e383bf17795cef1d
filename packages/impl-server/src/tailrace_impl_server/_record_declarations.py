"""Ends of record streams as the settings of a server declare them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tailrace_common_api import ConfigurationError
from tailrace_impl_server._settings import ServerSettings
from tailrace_server_api import RecordEnds

TABLES = ("databases", "collections", "sources", "queues")
"""Tables of settings that declare ends of record streams, and the databases behind them."""


def declared_ends(tables: Mapping[str, object], data: Path | None, settings: ServerSettings) -> RecordEnds:
    """Return the ends that tables of settings declare; nothing is opened yet.

    Args:
        tables: By name of the table, then by name of the end or database.
        data: Folder of the server, for embedded databases; ``None`` for none: then every end needs a database.
        settings: Settings of the server.

    Raises:
        ConfigurationError: A table is unknown, or a declaration cannot work; the field is ``TABLE.NAME.KEY``.
    """
    unknown = sorted(tables.keys() - set(TABLES))
    if unknown:
        raise ConfigurationError(field=unknown[0], problem=f"unknown; known are {', '.join(TABLES)}")
    return RecordEnds()
