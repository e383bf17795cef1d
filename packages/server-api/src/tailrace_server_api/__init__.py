"""Interfaces between a server's transports, its manager and its storage."""

from tailrace_server_api._catalog import Catalog, CatalogEntry
from tailrace_server_api._events import EventBus, Listener
from tailrace_server_api._manager import (
    Piece,
    Progress,
    ResourceManager,
    ResourceReader,
    UploadIngest,
)
from tailrace_server_api._storage import (
    BLOCK_SIZE,
    Boundary,
    Buffer,
    Committed,
    Conflict,
    Descriptor,
    Durability,
    Ended,
    FencedOff,
    Outcome,
    ResourceWriter,
    Snapshot,
    Storage,
)
from tailrace_server_api._transport import TransportServer, TransportServerSettings

__all__ = [
    "BLOCK_SIZE",
    "Boundary",
    "Buffer",
    "Catalog",
    "CatalogEntry",
    "Committed",
    "Conflict",
    "Descriptor",
    "Durability",
    "Ended",
    "EventBus",
    "FencedOff",
    "Listener",
    "Outcome",
    "Piece",
    "Progress",
    "ResourceManager",
    "ResourceReader",
    "ResourceWriter",
    "Snapshot",
    "Storage",
    "TransportServer",
    "TransportServerSettings",
    "UploadIngest",
]
