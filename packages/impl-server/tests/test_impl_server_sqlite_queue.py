"""Queues in SQLite: servers that are killed, and how statements find their records."""

import asyncio
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tailrace_impl_server import _sqlite_queue_statements as statements
from tailrace_impl_server._sqlite_queue import SqliteQueue
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Durability
from tailrace_server_api.contracts.queue import feed

_WORKER = Path(__file__).with_name("impl_server_queue_worker.py")


async def work(folder: Path, kill_after: int | None) -> list[str]:
    """Have a process work the queue in a folder, kill it after some answers, and return what it has told of."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, str(_WORKER), str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    told: list[str] = []
    async for line in worker.stdout:
        told.append(line.decode().strip())
        if len(told) == kill_after:
            # It may have come to its end by then.
            with suppress(ProcessLookupError):
                worker.kill()
    code = await worker.wait()
    assert code == 0 if kill_after is None else code in (-9, 0)
    return told if kill_after is None else [line for line in told if line != "end"]


async def test_a_killed_server_forgets_no_answer_and_no_record(tmp_path: Path) -> None:
    everything = {str(number) for number in range(4000)}
    file = SqliteThread(tmp_path / "queue.sqlite", durability=Durability.FSYNC)
    queue = SqliteQueue("tasks", file, SqliteThread(tmp_path / "queue.staging.sqlite", durability=Durability.OS))
    await queue.start()
    await feed(queue, [text.encode() for text in sorted(everything)])
    await queue.close()
    told: list[str] = []
    for answers in (1, 101, 333, 700):
        told += await work(tmp_path, answers)
    told += await work(tmp_path, None)
    assert told.pop() == "end"
    assert len(told) == len(set(told)), "an acknowledged record came again"
    # The last answers of each killed server were taken, and nobody could be told.
    assert len(everything - set(told)) <= 4 * 20
    assert set(told) <= everything


@pytest.mark.parametrize(
    "statement",
    [
        statements._READY,
        f"UPDATE tailrace_work SET state = 0 WHERE queue = ? AND state = 1 AND {statements._DUE}",
        f"UPDATE tailrace_work SET state = 0 WHERE queue = ? AND state = 2 AND {statements._DUE}",
        "SELECT min(due_at) FROM tailrace_work WHERE queue = ? AND state = ? AND state > 0",
        "SELECT count(*) FROM tailrace_work WHERE queue = ? AND state = ? AND state > 0 AND due_at > ?",
        statements._FORGET,
    ],
)
def test_no_statement_looks_at_what_waits(statement: str) -> None:
    """A million records that wait must cost nothing: each statement goes by an index, and sorts nothing."""
    connection = sqlite3.connect(":memory:")
    statements.make_tables(connection)
    values = ("tasks", 1, 1.0)[: statement.count("?")]
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    connection.close()
    assert plan
    assert all("SEARCH" in step and "INDEX" in step for step in plan), plan
