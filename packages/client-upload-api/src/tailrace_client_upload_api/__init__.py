"""Interfaces for uploading."""

from tailrace_client_upload_api._bulk import BulkClient, BulkUpload
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
from tailrace_client_upload_api._record_encoding import RecordContent, encode_record, key_size

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
    "encode_record",
    "key_size",
]
