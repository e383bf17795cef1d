"""The event loop of the clients of the suite: uvloop's, as of the command line, or that of the standard library."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

STANDARD_LOOP = os.environ.get("BENCH_LOOP") == "asyncio"
"""Whether the clients use the loop of the standard library; said by the environment, which subprocesses share."""


def run_coroutine(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new event loop."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop if STANDARD_LOOP else uvloop.new_event_loop) as runner:
        return runner.run(work)
