"""Interfaces for reading resources."""

from tailrace_client_download_api._client import (
    Buffer,
    DataChunk,
    DownloadClient,
    RemoteResource,
    ResourceClient,
)

__all__ = ["Buffer", "DataChunk", "DownloadClient", "RemoteResource", "ResourceClient"]
