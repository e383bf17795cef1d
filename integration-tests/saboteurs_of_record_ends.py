"""Defects between conversations about records and the ends behind them."""

from __future__ import annotations

from typing import Any

from sabotage import executed, put, saboteur


@saboteur("REC-0", cell="in-process-postgresql")
def keys_of_records_are_lost_in_a_group() -> None:
    from tailrace_common_api import RecordBatch
    from tailrace_impl_server import _bulk_ingest

    take = _bulk_ingest.StagedBulk._take_group

    def keyless(self: Any) -> Any:
        group, size = take(self)
        if group.batch.keys:
            executed()
        return group._replace(batch=RecordBatch(group.batch.data)), size

    put(_bulk_ingest.StagedBulk, "_take_group", keyless)


@saboteur("REC-1", cell="in-process-postgresql")
def schemas_are_not_looked_at() -> None:
    from tailrace_impl_server import _record_validation

    def objects(self: Any, batch: Any) -> Any:
        executed()
        return _record_validation.JsonObjectValidator.parse(self, batch)

    put(_record_validation.JsonSchemaValidator, "parse", objects)


@saboteur("REC-1", cell="grpc-postgresql")
def only_the_first_slice_of_a_message_is_validated() -> None:
    from tailrace_common_api import BulkRefused
    from tailrace_impl_server import _bulk_ingest

    validate = _bulk_ingest.StagedBulk._validate_slice

    def lax(self: Any) -> None:
        real = self._validator
        if self._arrived_offset:
            executed()
            self._validator = _Lenient(real)
        try:
            validate(self)
        finally:
            self._validator = real

    class _Lenient:
        def __init__(self, real: Any) -> None:
            self._real = real

        def parse(self, batch: Any) -> Any:
            try:
                return self._real.parse(batch)
            except BulkRefused:
                return [{} for _ in batch.data]

    put(_bulk_ingest.StagedBulk, "_validate_slice", lax)


@saboteur("REC-1", cell="in-process-postgresql")
def all_problems_are_found_and_none_is_told() -> None:
    from tailrace_impl_server import _bulk_ingest

    take = _bulk_ingest.StagedBulk._take_problems

    def forgetful(self: Any, problems: Any, total: int, *, offset: int) -> None:
        executed()
        take(self, problems[:0], total, offset=offset)

    put(_bulk_ingest.StagedBulk, "_take_problems", forgetful)


@saboteur("REC-5", cell="websocket-postgresql")
def bulks_have_no_limits() -> None:
    from tailrace_impl_server import _bulk_ingest

    def unlimited(self: Any, batch: Any) -> Any:
        executed()
        return _bulk_ingest._sizes(batch, self._records)

    put(_bulk_ingest.StagedBulk, "_check_sizes", unlimited)


@saboteur("REC-2", cell="in-process-postgresql")
def an_idle_bulk_lives_for_ever() -> None:
    from tailrace_impl_server import _bulk_ingest

    def patient(self: Any) -> None:
        executed()

    put(_bulk_ingest.StagedBulk, "_look_for_idleness", patient)


@saboteur("REC-6", cell="grpc-postgresql")
def most_results_cut_nothing() -> None:
    from tailrace_impl_server import _query_batches

    prepare = _query_batches.QueryBatches.__init__

    def unbounded(self: Any, *arguments: Any, **named: Any) -> None:
        prepare(self, *arguments, **named)
        if self._left is not None:
            executed()
            self._left = None

    put(_query_batches.QueryBatches, "__init__", unbounded)


@saboteur("REC-6", cell="in-process-postgresql")
def a_source_runs_as_far_ahead_as_it_can() -> None:
    from tailrace_impl_common.record_messages import MESSAGE_RECORDS
    from tailrace_impl_server import _query_batches

    def always(self: Any) -> bool:
        executed()
        self._size, self._room = 0, len(self._data) + MESSAGE_RECORDS
        return True

    put(_query_batches.QueryBatches, "_has_room", always)
