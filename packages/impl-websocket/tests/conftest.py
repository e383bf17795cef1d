"""A server on a free port of this machine, in front of a manager in memory."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

# Modules beside the tests are importable, whatever pytest's import mode.
sys.path.insert(0, str(Path(__file__).parent))

from impl_websocket_server import Running, running_server


@pytest.fixture
def errors_are_logged() -> None:
    """Used by tests in which something is meant to go wrong."""


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Servers and asyncio report defects in callbacks nowhere but in the log."""
    yield
    if "errors_are_logged" not in request.fixturenames:
        records = [*caplog.get_records("setup"), *caplog.get_records("call")]
        assert [record.getMessage() for record in records if record.levelno >= logging.ERROR] == []


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()]
    assert not left, f"tasks are left: {left}"


@pytest.fixture
async def server(no_task_is_left: None) -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


@pytest.fixture(params=["buffered", "websockets-sansio"])
async def either_server(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Running]:
    """A server with each reader of frames, for tests of frames."""
    async with running_server({"protocol": request.param}) as running:
        yield running
