"""Defects of bulks, queries and work."""

from __future__ import annotations

from typing import Any

from sabotage import executed, put, saboteur


@saboteur("REC-2", cell="in-process-postgresql")
def bulks_that_end_are_not_purged() -> None:
    from tailrace_impl_server import _postgres_sink

    async def rollback(self: Any, id: str) -> None:
        executed()

    put(_postgres_sink.PostgresSink, "rollback", rollback)


@saboteur("REC-2", cell="in-process-postgresql")
def a_bulk_whose_client_leaves_is_committed() -> None:
    from tailrace_impl_common import _serve_bulk

    async def commit(ingest: Any) -> None:
        executed()
        if ingest._records:
            await ingest.commit(records=ingest._records, digest=ingest._digest.digest())
        else:
            await ingest.rollback()

    put(_serve_bulk, "_purge", commit)


@saboteur("REC-1", cell="websocket-postgresql")
def problems_are_counted_within_a_message() -> None:
    from tailrace_impl_server import _bulk_ingest

    take = _bulk_ingest.StagedBulk._take_problems

    def within(self: Any, problems: Any, total: int, *, offset: int) -> None:
        executed()
        take(self, problems, total, offset=0)

    put(_bulk_ingest.StagedBulk, "_take_problems", within)


@saboteur("REC-1", cell="in-process-postgresql")
def nothing_is_staged_before_a_group_is_full() -> None:
    from tailrace_impl_server import _bulk_ingest

    wait = _bulk_ingest.StagedBulk._group_wait

    def patient(self: Any) -> float:
        left: float = wait(self)
        if left <= 0 and self._valid_records < self._settings.group_records and not self._flushing:
            executed()
            return 1.0
        return left

    put(_bulk_ingest.StagedBulk, "_group_wait", patient)


@saboteur("REC-3", cell="grpc-postgresql")
def nobody_sweeps() -> None:
    from tailrace_impl_server import _staging_sweeper

    async def sweep(self: Any) -> int:
        executed()
        return 0

    put(_staging_sweeper.StagingSweeper, "sweep", sweep)


@saboteur("REC-5", cell="grpc-postgresql")
def records_under_a_repeated_key_are_not_compared() -> None:
    from tailrace_impl_common import _bulk_machine

    def compare(self: Any, result: Any) -> None:
        executed()

    put(_bulk_machine.BulkSender, "compare", compare)


@saboteur("REC-6", cell="websocket-postgresql")
def sources_run_on_when_their_reader_has_left() -> None:
    from tailrace_impl_common import _serve_query

    kept: list[Any] = []

    async def stop(self: Any, *tasks: Any) -> None:
        executed()
        kept.append((self, tasks))

    put(_serve_query._QueryConversation, "_stop", stop)


@saboteur("REC-6", cell="websocket-sqlite")
def rows_wait_for_a_statement_that_is_silent() -> None:
    from tailrace_impl_server import _sqlite_reading

    async def never(self: Any, waiter: Any) -> bool:
        executed()
        return False

    put(_sqlite_reading.SqliteReading, "_is_late", never)


@saboteur("REC-6", cell="in-process-postgresql")
def results_wait_for_a_full_message() -> None:
    from tailrace_impl_common import Signal
    from tailrace_impl_server import _query_batches

    end = _query_batches.QueryBatches._end

    class Patient(Signal):
        def notify(self) -> None:
            executed()

    def last(self: Any, failure: Any) -> None:
        super(Patient, self._filled).notify()
        end(self, failure)
        super(Patient, self._filled).notify()

    prepare = _query_batches.QueryBatches.__init__

    def prepared(self: Any, *arguments: Any, **named: Any) -> None:
        prepare(self, *arguments, **named)
        self._filled = Patient()
        self._room = 1000

    put(_query_batches.QueryBatches, "__init__", prepared)
    put(_query_batches.QueryBatches, "_end", last)
