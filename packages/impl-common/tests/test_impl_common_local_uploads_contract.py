from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tailrace_client_upload_api import UploadClient, UploadSession
from tailrace_client_upload_api.contracts import UploadClientContract
from tailrace_impl_common import DirectoryClient


class TestDirectoryClient(UploadClientContract):
    @pytest.fixture
    def upload_client(self, tmp_path: Path) -> UploadClient:
        return DirectoryClient(tmp_path / "uploads")

    async def stored_bytes(self, upload: UploadSession) -> bytes:
        return await asyncio.to_thread(Path(unquote(urlsplit(upload.reference).path)).read_bytes)
