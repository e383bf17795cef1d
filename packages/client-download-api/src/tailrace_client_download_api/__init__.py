"""Interfaces for reading resources."""

from tailrace_client_download_api._client import (
    EVERYTHING,
    FROM_START,
    NO_ATTRIBUTES,
    Buffer,
    DataChunk,
    DownloadClient,
    RemoteResource,
    ResourceClient,
)
from tailrace_client_download_api._records import (
    DEFAULT_CREDIT_BYTES,
    Delivery,
    RecordClient,
    RecordConsumer,
    RecordStream,
)

__all__ = [
    "DEFAULT_CREDIT_BYTES",
    "EVERYTHING",
    "FROM_START",
    "NO_ATTRIBUTES",
    "Buffer",
    "DataChunk",
    "Delivery",
    "DownloadClient",
    "RecordClient",
    "RecordConsumer",
    "RecordStream",
    "RemoteResource",
    "ResourceClient",
]
