"""Interfaces between a server's transports, its manager and its storage."""

from tailrace_server_api._access import (
    ALL_OPERATIONS,
    Authenticator,
    Authorizer,
    Credentials,
    Operation,
    Principal,
)
from tailrace_server_api._catalog import Catalog, CatalogEntry, ContextEntry, Usage
from tailrace_server_api._events import EventBus, Listener
from tailrace_server_api._hooks import ServerHooks, Veto
from tailrace_server_api._manager import (
    Piece,
    Progress,
    ResourceManager,
    ResourceReader,
    ResourceService,
    UploadIngest,
)
from tailrace_server_api._storage import (
    BLOCK_SIZE,
    Boundary,
    Buffer,
    Committed,
    Conflict,
    Damage,
    Descriptor,
    Durability,
    Ended,
    FencedOff,
    Outcome,
    ResourceWriter,
    Snapshot,
    Storage,
)
from tailrace_server_api._telemetry import RequestTelemetry, Telemetry
from tailrace_server_api._transport import TransportServer, TransportServerSettings

__all__ = [
    "ALL_OPERATIONS",
    "BLOCK_SIZE",
    "Authenticator",
    "Authorizer",
    "Boundary",
    "Buffer",
    "Catalog",
    "CatalogEntry",
    "Committed",
    "Conflict",
    "ContextEntry",
    "Credentials",
    "Damage",
    "Descriptor",
    "Durability",
    "Ended",
    "EventBus",
    "FencedOff",
    "Listener",
    "Operation",
    "Outcome",
    "Piece",
    "Principal",
    "Progress",
    "RequestTelemetry",
    "ResourceManager",
    "ResourceReader",
    "ResourceService",
    "ResourceWriter",
    "ServerHooks",
    "Snapshot",
    "Storage",
    "Telemetry",
    "TransportServer",
    "TransportServerSettings",
    "UploadIngest",
    "Usage",
    "Veto",
]
