"""What `tailrace bulk` does: from the lines of an input to a bulk."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from tailrace._connect import connect
from tailrace._messages import AlreadyReported, complain, describe, printable, say
from tailrace._progress import record_progress
from tailrace._record_lines import RecordLines, refused_line
from tailrace._status_report import json_line
from tailrace._upload_source import InputSource, Pieces
from tailrace_client_upload_api import BulkUpload
from tailrace_common_api import (
    BulkRefused,
    BulkResult,
    InternalError,
    InvalidArgument,
    Reporting,
    TailraceError,
    UploadAborted,
    record_problems,
)
from tailrace_impl_common import ConnectedBulk, cancel_and_wait


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkJob:
    """What is sent, and how."""

    collection: str
    source: InputSource
    """Where the records come from, one in each line."""
    key: str | None
    """Idempotency key; ``None`` for one that is made up."""
    key_field: str | None
    """Field that has the key of each record; ``None`` for records without keys."""
    content_type: str | None
    reporting: Reporting
    priority: int
    as_json: bool
    """Whether the result is printed as JSON."""
    lines: RecordLines = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", RecordLines(key_field=self.key_field))

    @property
    def name(self) -> str:
        """What the input is called."""
        return "standard input" if self.source.path is None else self.source.path


async def send_bulk(url: str, job: BulkJob) -> None:
    """Send all records and print the result.

    Raises:
        AlreadyReported: Records cannot be accepted; which lines these are has been said.
        TailraceError: Nothing was kept, or it is not known, which has been said then.
        OSError: The input cannot be read.
    """
    key = job.key or secrets.token_hex(16)
    in_doubt = False
    try:
        async with connect(url) as client, job.source.open() as (pieces_from, _):
            bulk = client.bulk(
                job.collection,
                idempotency_key=key,
                content_type=job.content_type,
                reporting=job.reporting,
                priority=job.priority,
            )
            try:
                await bulk.open()
                # What somebody types is not written over.
                typed = job.source.path is None and os.isatty(sys.stdin.fileno())
                with record_progress(job.collection, shown=not typed) as progress:
                    await _send_all(job, bulk, pieces_from(0), progress)
                    result = await bulk.commit()
            finally:
                try:
                    await bulk.cancel()
                finally:
                    in_doubt = bulk.in_doubt
    except TailraceError as error:
        _report_failure(job, error)
        if in_doubt:
            _report_unknown(key)
        if isinstance(error, BulkRefused) and record_problems(error):
            # It counts records from 0, and says nothing more.
            raise AlreadyReported(error) from None
        raise
    except asyncio.CancelledError:
        _report_failure(job, UploadAborted(reason="interrupted"))
        if in_doubt:
            _report_unknown(key)
        raise
    except BrokenPipeError:
        # Nobody reads what would be said.
        raise
    except OSError as error:
        _report_failure(job, InternalError(describe(error)))
        raise
    _report_result(job, result)


async def _send_all(job: BulkJob, bulk: ConnectedBulk, pieces: Pieces, progress: Callable[[int], None]) -> None:
    """Send all records of the input, unless the bulk ends before: also while the input has nothing to send.

    Raises:
        TailraceError: A record cannot be accepted, or the bulk is over.
        OSError: The input cannot be read.
    """
    sending = asyncio.create_task(_send_lines(job, bulk, pieces, progress))
    failing = asyncio.create_task(bulk.failed())
    try:
        await asyncio.wait((sending, failing), return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise failing.result()
        sending.result()
    finally:
        await cancel_and_wait(sending, failing)


async def _send_lines(job: BulkJob, bulk: ConnectedBulk, pieces: Pieces, progress: Callable[[int], None]) -> None:
    async with aclosing(job.lines.records(pieces, most=bulk.limits.record_bytes)) as records:
        async for some in records:
            for record in some:
                await _send(bulk, record.data, record.key)
            progress(bulk.count)


async def _send(bulk: BulkUpload, data: bytes, key: str | None) -> None:
    try:
        await bulk.send(data, key=key)
    except InvalidArgument as error:
        raise refused_line(bulk.count, None if error.field == "record" else error.field, error.problem) from None


def _report_result(job: BulkJob, result: BulkResult) -> None:
    if job.as_json:
        fields = {
            "id": result.id,
            "collection": result.collection,
            "records": result.records,
            "size": result.size,
            "digest": result.digest.hex(),
            "committed_at": result.committed_at,
            "repeated": result.repeated,
        }
        say(json_line({"event": "committed", **fields}))
        return
    before = " before, with this key" if result.repeated else ""
    amount = f"{result.records:,} records, {result.size:,} bytes"
    say(f"{printable(result.collection)}: {amount} committed{before}  {result.id}")


def _report_failure(job: BulkJob, error: TailraceError) -> None:
    problems = record_problems(error) if isinstance(error, BulkRefused) else ()
    lines = [job.lines.line_of(problem.index) for problem in problems]
    if job.as_json:
        listed = [
            {
                "line": line,
                "index": problem.index,
                "kind": problem.kind.value,
                "field": problem.field,
                "problem": problem.problem,
            }
            for line, problem in zip(lines, problems, strict=True)
        ]
        total = error.total if isinstance(error, BulkRefused) else 0
        described = {"code": error.code, "message": str(error)}
        say(json_line({"event": "failed", "error": described, "problems": listed, "total": total}))
    for line, problem in zip(lines, problems, strict=True):
        named = "" if problem.field is None else f"{problem.field}: "
        complain(f"{job.name}:{line}: {named}{problem.problem}")
    if isinstance(error, BulkRefused) and problems and error.total > len(problems):
        complain(f"{job.name}: and {error.total - len(problems):,} more; nothing was committed")


def _report_unknown(key: str) -> None:
    complain(
        f"whether it was committed is not known; the same command with --key {key} finds out, and never doubles it"
    )
