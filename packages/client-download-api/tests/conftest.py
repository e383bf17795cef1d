"""Makes the modules beside the tests importable, and gives blocking code a client of records in memory."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tailrace_client_download_api import sync

sys.path.insert(0, str(Path(__file__).parent))

from client_download_api_memory_records import MemoryRecordClient


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def behind() -> MemoryRecordClient:
    return MemoryRecordClient()


@pytest.fixture
def client(portal: BlockingPortal, behind: MemoryRecordClient) -> sync.RecordClient:
    return sync.RecordClient(portal, behind)
