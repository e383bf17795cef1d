"""`tailrace download`."""

from __future__ import annotations

import click

from tailrace._output import STANDARD, refuse_existing, write_chunks
from tailrace._progress import transfer_progress
from tailrace._ranges import parse_range
from tailrace._references import Target, reference_argument, resolve_reference, server_option
from tailrace._running import run_async
from tailrace_common_api import TailraceError


@click.command()
@reference_argument
@click.option("--range", "selection", metavar="A:B", help="Only the bytes from A up to B, exclusive.")
@click.option("-o", "--output", metavar="FILE", help="Write to FILE; a partial one is continued if its head agrees.")
@server_option
def download(reference: str, selection: str | None, output: str | None, server: str | None) -> None:
    """Get the bytes that a resource has at the moment.

    An existing FILE is compared with the resource by its head. If it is a prefix, it is continued, else it is left as
    it is (exit code 4). With --range, FILE must not exist.
    """
    target = resolve_reference(reference, server)
    start, end = (None, None) if selection is None else parse_range(selection)
    if selection is not None:
        refuse_existing(output)
    run_async(_download(target, start, end, None if output == STANDARD else output))


async def _download(target: Target, start: int | None, end: int | None, output: str | None) -> None:
    from tailrace._connect import connect

    async with connect(target.url) as client, client.open(target.id) as resource:
        if output is None:
            await write_chunks(resource.chunks(start or 0, end), None)
        elif start is not None:
            with transfer_progress(output, None if end is None else end - start) as report:
                await write_chunks(resource.chunks(start, end), output, report=report)
        else:
            size = (await resource.status()).size
            with transfer_progress(output, size) as report:
                try:
                    await resource.save(output, progress=report)
                except TailraceError:
                    raise  # Some are errors of the operating system as well; they are not about the file.
                except OSError as error:
                    error.filename = error.filename or output
                    raise
