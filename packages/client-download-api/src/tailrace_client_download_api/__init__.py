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

__all__ = [
    "EVERYTHING",
    "FROM_START",
    "NO_ATTRIBUTES",
    "Buffer",
    "DataChunk",
    "DownloadClient",
    "RemoteResource",
    "ResourceClient",
]
