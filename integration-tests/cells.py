"""The cells of the suite: every transport over every storage."""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass


class Transport(enum.Enum):
    """How a client reaches the server."""

    IN_PROCESS = "in-process"
    GRPC = "grpc"
    WEBSOCKET = "websocket"


class StorageKind(enum.Enum):
    """Where the server keeps resources."""

    MEMORY = "memory"
    FILESYSTEM = "filesystem"


@dataclass(frozen=True, slots=True)
class Cell:
    """One transport over one storage."""

    transport: Transport
    storage: StorageKind

    def __str__(self) -> str:
        return f"{self.transport.value}-{self.storage.value}"

    @property
    def wired(self) -> bool:
        """Whether there is a network connection between client and server."""
        return self.transport is not Transport.IN_PROCESS


class Database(enum.Enum):
    """Where the server keeps records."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


@dataclass(frozen=True, slots=True)
class RecordCell:
    """One transport over one database of records."""

    transport: Transport
    database: Database

    def __str__(self) -> str:
        return f"{self.transport.value}-{self.database.value}"

    @property
    def wired(self) -> bool:
        """Whether there is a network connection between client and server."""
        return self.transport is not Transport.IN_PROCESS


@dataclass(frozen=True, slots=True)
class Crossing:
    """An upload over one transport that is read over another one."""

    upload: Transport
    download: Transport
    storage: StorageKind

    def __str__(self) -> str:
        return f"{self.upload.value}-to-{self.download.value}-{self.storage.value}"


EVERY_CELL = frozenset(Cell(transport, storage) for transport in Transport for storage in StorageKind)
"""What holds on every transport and storage."""
WIRED_CELLS = frozenset(cell for cell in EVERY_CELL if cell.wired)
"""What needs a network connection."""
WEBSOCKET_CELLS = frozenset(cell for cell in EVERY_CELL if cell.transport is Transport.WEBSOCKET)
"""What only the WebSocket server has."""
LASTING_CELLS = frozenset(cell for cell in EVERY_CELL if cell.storage is StorageKind.FILESYSTEM)
"""What needs resources that outlive the server."""
PROCESS_CELLS = WIRED_CELLS & LASTING_CELLS
"""What needs a server in a process of its own."""
RECORD_CELLS = frozenset(RecordCell(transport, database) for transport in Transport for database in Database)
"""What holds for records on every transport and database."""
WIRED_RECORD_CELLS = frozenset(cell for cell in RECORD_CELLS if cell.wired)
"""What of records needs a network connection, or a server in a process of its own."""
POSTGRES_RECORD_CELLS = frozenset(cell for cell in WIRED_RECORD_CELLS if cell.database is Database.POSTGRESQL)
"""What of records needs a PostgreSQL server to crash beneath a server in a process of its own."""
SQLITE_RECORD_CELLS = frozenset(cell for cell in RECORD_CELLS if cell.database is Database.SQLITE)
"""What of records needs a statement of SQLite."""
WEBSOCKET_RECORD_CELLS = frozenset(cell for cell in RECORD_CELLS if cell.transport is Transport.WEBSOCKET)
"""What of records only the WebSocket server has: plain HTTP."""

CROSSINGS = tuple(
    Crossing(upload, download, storage)
    for upload, download in itertools.permutations(Transport, 2)
    for storage in StorageKind
)
"""Every pair of different transports, over every storage."""


def ordered(cells: frozenset[Cell] | frozenset[RecordCell]) -> list[Cell | RecordCell]:
    """Return cells in the order in which the suite runs them."""
    known: list[Cell | RecordCell] = [Cell(transport, storage) for transport in Transport for storage in StorageKind]
    known += [RecordCell(transport, database) for transport in Transport for database in Database]
    return [cell for cell in known if cell in cells]
