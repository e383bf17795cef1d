"""Defects of the sinks: in staging, in the final transaction, and in what is known of bulks that have ended."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("REC-2", "REC-4", cell="in-process-sqlite")
def a_bulk_is_moved_in_two_transactions() -> None:
    from tailrace_impl_server import _sqlite_sink
    from tailrace_impl_server._sqlite_problems import find_problems
    from tailrace_impl_server._sqlite_target import places

    def in_parts(self: Any, connection: Any, target: Any, bulk: Any, records: int) -> None:
        half = records // 2
        try:
            connection.execute(target.move(), places(bulk.number, 0, half))
            connection.execute("COMMIT")
            executed()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(target.move(), places(bulk.number, half, records))
        except sqlite3.IntegrityError:
            if (refused := find_problems(connection, target, bulk.number, records)) is not None:
                raise refused from None

    put(_sqlite_sink.SqliteSink, "_move", in_parts)


@saboteur("REC-2", "REC-3", cell="grpc-postgresql", trap="purge-then-commit")
def what_was_rolled_back_stays_staged() -> None:
    from tailrace_impl_server import _postgres_sink

    async def nothing(self: Any, id: str) -> None:
        executed()

    put(_postgres_sink.PostgresSink, "rollback", nothing)


@saboteur("REC-3", cell="grpc-postgresql")
def rows_that_a_crash_took_are_not_missed() -> None:
    from tailrace_common_api import StagingLost
    from tailrace_impl_server import _postgres_bulks, _postgres_sink

    uncounted = _postgres_bulks.COUNT.replace("AND staged = $2", "AND $2::bigint >= 0")

    async def insert(self: Any, connection: Any, bulk: int, records: int) -> None:
        executed()
        await connection.execute(self._target.move, bulk)

    async def lenient(self: Any, *arguments: Any) -> None:
        with suppress(StagingLost):
            await real(self, *arguments)

    put(_postgres_bulks, "COUNT", uncounted)
    put(_postgres_sink.PostgresSink, "_insert", insert)
    real = put(_postgres_sink.PostgresSink, "_raise_why", lenient)


@saboteur("REC-3", cell="in-process-sqlite")
def old_bulks_are_not_swept() -> None:
    from tailrace_impl_server import _sqlite_sink

    async def nothing(self: Any, older_than: float | None) -> int:
        if older_than is not None:
            executed()
        return 0

    put(_sqlite_sink.SqliteSink, "_purge_dead", nothing)


@saboteur("REC-4", cell="in-process-sqlite")
def duplicates_are_left_out_quietly() -> None:
    from tailrace_common_api import StorageFailure
    from tailrace_impl_server import _sqlite_sink, _sqlite_target

    move = _sqlite_target.Target.move
    real = _sqlite_sink.SqliteSink._move

    def lenient(self: Any, otherwise: str = "IGNORE") -> str:
        return move(self, otherwise)

    def take_what_fits(self: Any, connection: Any, target: Any, bulk: Any, records: int) -> None:
        try:
            real(self, connection, target, bulk, records)
        except StorageFailure:
            executed()

    put(_sqlite_target.Target, "move", lenient)
    put(_sqlite_sink.SqliteSink, "_move", take_what_fits)


@saboteur("REC-4", cell="in-process-postgresql")
def references_are_not_looked_up() -> None:
    from tailrace_impl_server import _postgres_problems

    constraints = _postgres_problems._constraint_rules

    async def fewer(connection: Any, target: Any, available: Any) -> Any:
        executed()
        return [rule for rule in await constraints(connection, target, available) if rule.kind.value != "reference"]

    put(_postgres_problems, "_constraint_rules", fewer)


@saboteur("REC-5", cell="in-process-sqlite")
def results_are_forgotten() -> None:
    from tailrace_impl_server import _sqlite_bulks

    def nothing(connection: Any, *, principal: str, key: str) -> None:
        executed()

    put(_sqlite_bulks, "find_result", nothing)


@saboteur("REC-5", cell="in-process-postgresql")
def repeated_bulks_look_like_new_ones() -> None:
    from tailrace_impl_server import _postgres_bulks

    def forgetful(row: Any, *, repeated: bool) -> Any:
        executed()
        return real(row, repeated=False)

    real = put(_postgres_bulks, "result_of", forgetful)
