"""Interfaces for uploading."""

from tailrace_client_upload_api._bulk import BulkClient, BulkUpload, RecordContent
from tailrace_client_upload_api._client import (
    WAIT,
    Buffer,
    DropOldest,
    ReopenRequest,
    SpoolToDisk,
    UploadClient,
    UploadRequest,
    UploadSession,
    Wait,
    WhileAway,
)

__all__ = [
    "WAIT",
    "Buffer",
    "BulkClient",
    "BulkUpload",
    "DropOldest",
    "RecordContent",
    "ReopenRequest",
    "SpoolToDisk",
    "UploadClient",
    "UploadRequest",
    "UploadSession",
    "Wait",
    "WhileAway",
]
