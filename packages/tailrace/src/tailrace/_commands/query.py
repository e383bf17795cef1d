"""`tailrace query`."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from tailrace._labels import parse_labels
from tailrace._numbers import WholeNumber
from tailrace._output import standard_output
from tailrace._progress import record_progress
from tailrace._references import resolve_server, server_option
from tailrace._running import run_async
from tailrace._status_report import json_line

if TYPE_CHECKING:
    from tailrace_common_api import Record

_LINE_ENDS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")


@click.command(short_help="Print the records of a source as they are produced.")
@click.argument("source", metavar="NAME")
@click.argument("arguments", metavar="[K=V]...", nargs=-1)
@server_option
@click.option("--max-results", type=WholeNumber(min=0), metavar="N", help="Most records to give; all by default.")
@click.option("--json", "as_json", is_flag=True, help="Print each record as an object that has its key with it.")
def query(source: str, arguments: tuple[str, ...], server: str | None, max_results: int | None, as_json: bool) -> None:
    """Print the records of a source, one in each line, as they are produced.

    The query ends at the server, too, when nobody reads the output any more, and with Ctrl-C.

    With --json each line is {"key": …, "record": …}, or {"key": …, "base64": …} for records that are no JSON, and the
    last one {"event": "ended", "records": N}.
    """
    given = parse_labels(arguments, what="argument")
    if max_results is not None:
        if "max_results" in given:
            raise click.UsageError("--max-results and max_results exclude each other")
        given["max_results"] = str(max_results)
    run_async(_query(resolve_server(server), source, given, as_json))


async def _query(url: str, source: str, arguments: dict[str, str], as_json: bool) -> None:
    from tailrace._connect import connect
    from tailrace_common_api import TailraceError

    count = 0
    async with connect(url) as client, client.query(source, **arguments) as stream, standard_output() as writer:
        is_json = stream.content_type.partition(";")[0].strip().lower().endswith(("/json", "+json"))
        # What is printed on the terminal shows the progress by itself.
        with record_progress(source, shown=not sys.stdout.isatty()) as progress:
            try:
                async with aclosing(stream.batches()) as batches:
                    async for batch in batches:
                        await writer.write(_objects(batch, is_json) if as_json else _lines(batch, is_json))
                        count += len(batch)
                        progress(count)
            except TailraceError:
                # What came before the error is written all the same.
                await writer.flush()
                raise
            if as_json:
                await writer.write(json_line({"event": "ended", "records": count}).encode() + b"\n")
            await writer.flush()


def _lines(records: Sequence[Record], is_json: bool) -> bytes:
    lines = b"\n".join([record.data for record in records])
    if is_json and (lines.count(b"\n") >= len(records) or b"\r" in lines):
        # JSON has no line ends but those between its tokens, where a space does as well.
        lines = b"\n".join([record.data.translate(_LINE_ENDS_TO_SPACES) for record in records])
    return lines + b"\n"


def _objects(records: Sequence[Record], is_json: bool) -> bytes:
    lines = []
    for record in records:
        key = json.dumps(record.key).encode()
        if is_json:
            name, content = b"record", record.data.translate(_LINE_ENDS_TO_SPACES)
        else:
            name, content = b"base64", b'"' + base64.b64encode(record.data) + b'"'
        lines.append(b'{"key":%b,"%b":%b}\n' % (key, name, content))
    return b"".join(lines)
