"""`tailrace follow`."""

from __future__ import annotations

import click

from tailrace._numbers import WholeNumber
from tailrace._output import refuse_existing, write_chunks
from tailrace._progress import transfer_progress
from tailrace._references import Target, reference_argument, resolve_reference, server_option
from tailrace._running import run_async
from tailrace_common_api import FromOffset, LastBytes, LastLines, Start


@click.command(short_help="Print a resource as it grows, until it has ended.")
@reference_argument
@click.option("--from", "start", type=WholeNumber(min=0), metavar="N", help="Start at byte N; the default is 0.")
@click.option("--last-bytes", type=WholeNumber(min=0), metavar="N", help="Start with the last N bytes.")
@click.option("--last-lines", type=WholeNumber(min=0), metavar="N", help="Start with the last N lines.")
@click.option("-o", "--output", metavar="FILE", help="Write to FILE, which must not exist.")
@server_option
def follow(
    reference: str,
    start: int | None,
    last_bytes: int | None,
    last_lines: int | None,
    output: str | None,
    server: str | None,
) -> None:
    """Print a resource as it grows, until it has ended; a failed one ends with exit code 1 behind its last byte."""
    starts: list[Start] = []
    if start is not None:
        starts.append(FromOffset(start))
    if last_bytes is not None:
        starts.append(LastBytes(last_bytes))
    if last_lines is not None:
        starts.append(LastLines(last_lines))
    if len(starts) > 1:
        raise click.UsageError("--from, --last-bytes and --last-lines exclude each other")
    target = resolve_reference(reference, server)
    refuse_existing(output)
    run_async(_follow(target, starts[0] if starts else FromOffset(0), output))


async def _follow(target: Target, start: Start, output: str | None) -> None:
    from tailrace._connect import connect

    async with connect(target.url) as client, client.open(target.id) as resource:
        chunks = resource.follow_chunks(start)
        if output is None:
            await write_chunks(chunks, None)
            return
        with transfer_progress(output, None) as report:
            await write_chunks(chunks, output, report=report)
