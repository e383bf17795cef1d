"""Makes the modules beside the tests importable, whatever pytest's import mode; a server for each test."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

from impl_websocket_server import Running, running_server


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running
