"""Tests that every implementation of the server's interfaces must pass; needs pytest and pytest-asyncio."""

from tailrace_server_api.contracts.catalog import CatalogContract
from tailrace_server_api.contracts.events import EventBusContract
from tailrace_server_api.contracts.queue import RecordQueueContract
from tailrace_server_api.contracts.sink import RecordSinkContract
from tailrace_server_api.contracts.source import RecordSourceContract
from tailrace_server_api.contracts.storage import StorageContract

__all__ = [
    "CatalogContract",
    "EventBusContract",
    "RecordQueueContract",
    "RecordSinkContract",
    "RecordSourceContract",
    "StorageContract",
]
