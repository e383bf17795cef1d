"""Defects in the databases beneath queues, and in what a bulk hands to its sink."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from sabotage import executed, put, saboteur


def put_statement(module: Any, name: str, what: str, defect: str) -> None:
    """Replace a part of a statement, which must be there."""
    statement = getattr(module, name)
    assert what in statement, f"{name} has no {what!r} any more"
    put(module, name, statement.replace(what, defect))


def trace_claims(queue: Any) -> None:
    """Leave the trace whenever records are claimed from queues of a class."""
    real = queue.claim

    async def claim(self: Any, claims: Any) -> Any:
        handed = await real(self, claims)
        if any(handed):
            executed()
        return handed

    put(queue, "claim", claim)


@saboteur("REC-9", cell="grpc-sqlite")
def late_answers_count() -> None:
    from tailrace_impl_server import _sqlite_queue_statements as statements

    put_statement(statements, "_ACKNOWLEDGE", "attempt = ?", "attempt >= ?")
    real = statements.Terms._acknowledged

    def acknowledged(self: Any, connection: Any, items: Any) -> set[tuple[int, int]]:
        executed()
        return real(self, connection, items)

    put(statements.Terms, "_acknowledged", acknowledged)


@saboteur("REC-9", cell="websocket-postgresql")
def attempts_are_not_counted() -> None:
    from tailrace_impl_server import _postgres_queue_statements as statements
    from tailrace_impl_server._postgres_queue import PostgresQueue

    put_statement(statements, "LEASE", "attempt = attempt + 1", "attempt = 1")
    trace_claims(PostgresQueue)


@saboteur("REC-10", cell="grpc-sqlite")
def work_is_done_in_the_order_of_its_arrival() -> None:
    from tailrace_impl_server import _sqlite_queue_statements as statements
    from tailrace_impl_server._sqlite_queue import SqliteQueue

    put_statement(statements, "_READY", "priority DESC, id", "id")
    trace_claims(SqliteQueue)


@saboteur("REC-12", cell="grpc-postgresql")
def what_was_handed_out_never_comes_again() -> None:
    from tailrace_impl_server import _postgres_queue_statements as statements
    from tailrace_impl_server._postgres_queue import PostgresQueue

    put_statement(statements, "LEASE", "make_interval(secs => $3)", "make_interval(secs => $3 + 86400)")
    trace_claims(PostgresQueue)


@saboteur("REC-12", cell="websocket-sqlite")
def answers_are_written_later() -> None:
    from tailrace_impl_server._sqlite_queue import SqliteQueue

    real = SqliteQueue.settle
    writing: set[Any] = set()

    async def write(self: Any, settlements: Any) -> None:
        # Long before the lease has ended, which is half a second.
        await asyncio.sleep(0.2)
        await real(self, settlements)

    async def settle(self: Any, settlements: Any) -> Any:
        executed()
        task = asyncio.create_task(write(self, settlements))
        writing.add(task)
        task.add_done_callback(writing.discard)
        return [True] * len(settlements)

    put(SqliteQueue, "settle", settle)


@saboteur("REC-0", cell="websocket-sqlite")
def records_are_written_anew() -> None:
    from tailrace_common_api import RecordBatch
    from tailrace_impl_server import _bulk_ingest

    real = _bulk_ingest.StagedBulk._take_group

    def take_group(self: Any) -> Any:
        group, size = real(self)
        executed()
        data = [json.dumps(json.loads(record)).encode() for record in group.batch.data]
        return group._replace(batch=RecordBatch(data, group.batch.keys)), size

    put(_bulk_ingest.StagedBulk, "_take_group", take_group)


@saboteur("REC-4", cell="grpc-postgresql")
def empty_bulks_are_committed() -> None:
    from tailrace_impl_server import _bulk_ingest

    real = _bulk_ingest.StagedBulk._check_arrived

    def check_arrived(self: Any, records: int, digest: bytes) -> None:
        if records:
            real(self, records, digest)
        else:
            executed()

    put(_bulk_ingest.StagedBulk, "_check_arrived", check_arrived)
