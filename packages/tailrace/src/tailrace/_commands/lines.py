"""`tailrace lines`."""

from __future__ import annotations

import click

from tailrace._numbers import WholeNumber
from tailrace._output import write_chunks
from tailrace._ranges import parse_range
from tailrace._references import Target, reference_argument, resolve_reference, server_option
from tailrace._running import run_async


@click.command(short_help="Print lines of a resource.")
@reference_argument
@click.argument("selection", metavar="[FIRST]:[END]", required=False)
@click.option("--last", type=WholeNumber(min=0), metavar="N", help="The last N lines.")
@server_option
def lines(reference: str, selection: str | None, last: int | None, server: str | None) -> None:
    """Print lines of a resource: from line FIRST, counted from 0, up to line END, exclusive; all when none is given."""
    if selection is not None and last is not None:
        raise click.UsageError("a range of lines and --last exclude each other")
    first, end = parse_range(selection or ":")
    run_async(_lines(resolve_reference(reference, server), first, None if end is None else end - first, last))


async def _lines(target: Target, first: int, count: int | None, last: int | None) -> None:
    from tailrace._connect import connect

    async with connect(target.url) as client, client.open(target.id) as resource:
        chunks = resource.line_chunks(first, count) if last is None else resource.last_line_chunks(last)
        await write_chunks(chunks, None)
