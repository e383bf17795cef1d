"""Interfaces for uploading."""

from tailrace_client_upload_api._client import (
    Buffer,
    ReopenRequest,
    UploadClient,
    UploadRequest,
    UploadSession,
)

__all__ = ["Buffer", "ReopenRequest", "UploadClient", "UploadRequest", "UploadSession"]
