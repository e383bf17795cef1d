"""Consumers of a dispatcher, in few words."""

import asyncio

from tailrace_common_api import QueuedRecord, Settlement, Verdict
from tailrace_impl_server._work_dispatcher import WorkDispatcher
from tailrace_server_api import Handed, WorkSession

PLENTY = 1 << 30
SIZE = 18
"""What a record of ten bytes counts for."""


def consumer(dispatcher: WorkDispatcher, records: int, size: int = PLENTY) -> WorkSession:
    """Return one with credit."""
    session = dispatcher.open()
    session.set_credit(0, records=records, bytes=size)
    return session


async def take(session: WorkSession, count: int) -> list[QueuedRecord]:
    """Take records until there are ``count``."""
    taken: list[QueuedRecord] = []
    while len(taken) < count:
        told = await session.next()
        if isinstance(told, Handed):
            taken.extend(told.records)
    assert len(taken) == count
    return taken


async def ack(session: WorkSession, *records: QueuedRecord) -> None:
    """Acknowledge records, all of which count."""
    answers = [Settlement(record.id, record.attempt, Verdict.ACKNOWLEDGE) for record in records]
    assert all(await session.settle(answers))


async def settle_down() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)
