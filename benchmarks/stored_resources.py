"""Folders with very many resources, made in this process by the server's own code: as a server would have left them.

Only the waiting for the disk is left out while they are made: a benchmark's folder need not survive a loss of power.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from loops import run_coroutine

from tailrace_common_api import Metadata, ResourceState
from tailrace_impl_common import HeadHasher, chunk_hash
from tailrace_impl_server import create_manager
from tailrace_server_api import ResourceManager

CONTEXTS = 20
SHARDS = 10
RARE = 1000
"""One of so many resources has the label ``rare=yes``."""
_AT_ONCE = 64


def content(number: int) -> bytes:
    """Return the bytes of a resource."""
    return b"resource %d\n" % number * 8


def metadata(number: int, contexts: list[str]) -> Metadata:
    """Return the metadata of a resource: labels that many have, that few have, and one that it has alone."""
    labels = {"shard": str(number % SHARDS), "number": str(number), "all": "yes"}
    if number % RARE == 0:
        labels["rare"] = "yes"
    return Metadata(
        name=f"resource {number}.log",
        content_type="text/plain",
        labels=labels,
        context=contexts[number % len(contexts)],
        lines=True,
    )


@contextmanager
def without_syncs() -> Generator[None, None, None]:
    """Let nothing in this process wait for the disk."""
    kept = os.fsync, os.fdatasync
    os.fsync = os.fdatasync = lambda fd: None
    try:
        yield
    finally:
        os.fsync, os.fdatasync = kept


async def _make_one(manager: ResourceManager, number: int, contexts: list[str], *, finish: bool) -> None:
    ingest = await manager.create(metadata(number, contexts))
    data = content(number)
    hasher = HeadHasher()
    hasher.update(data)
    ingest.submit(data, hash=chunk_hash(data))
    if finish:
        status = await ingest.finish(size=len(data), head=hasher.head())
        if status.state is not ResourceState.COMPLETED:
            raise RuntimeError(f"a resource ended {status.state.name}")
    else:
        progress = ingest.progress
        while ingest.snapshot.size < len(data):
            progress = await ingest.changed(progress)
        await ingest.release()


async def _make(data: Path, count: int, unfinished: int) -> list[str]:
    options = {"max_uploads": max(10_000, unfinished + 1), "max_context_resources": count + 1}
    async with create_manager(data, options) as server:
        manager = server.manager
        contexts = [(await manager.create_context({"number": str(number)})).id for number in range(CONTEXTS)]
        numbers = iter(range(count))

        async def work() -> None:
            # The unfinished ones are the last: they are what ran when the server ended.
            for number in numbers:
                await _make_one(manager, number, contexts, finish=number < count - unfinished)

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(work())
    return contexts


def make_resources(data: Path, count: int, *, unfinished: int = 0) -> list[str]:
    """Make a server's folder with ``count`` small resources in open contexts; return the contexts' ids.

    Args:
        data: The folder.
        count: How many resources.
        unfinished: How many of them are interrupted uploads.
    """
    with without_syncs():
        return run_coroutine(_make(data, count, unfinished))
