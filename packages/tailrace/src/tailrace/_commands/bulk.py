"""`tailrace bulk`."""

from __future__ import annotations

import os

import click

from tailrace._messages import printable
from tailrace._output import STANDARD
from tailrace._references import resolve_server, server_option
from tailrace._running import run_async


@click.command(short_help="Send records, all of which are there together or not at all.")
@click.argument("collection", metavar="COLLECTION")
@click.argument("path", metavar="FILE|-")
@server_option
@click.option("--key", metavar="KEY", help="Idempotency key: the same command again commits nothing twice.")
@click.option("--key-field", metavar="FIELD", help="Field of each record that is its key, too.")
@click.option("--priority", type=int, default=0, metavar="N", help="For a queue: higher ones come first; 0 by default.")
@click.option("--content-type", metavar="T", help="Media type of the records; that of the collection by default.")
@click.option("--all-problems", is_flag=True, help="Look at all records and report each bad one, not the first alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one event in a line.")
def bulk(
    collection: str,
    path: str,
    server: str | None,
    key: str | None,
    key_field: str | None,
    priority: int,
    content_type: str | None,
    all_problems: bool,
    as_json: bool,
) -> None:
    """Send the records of a file, one in each line, or of standard input (-), to a collection or a queue.

    They become visible together when the input has ended, or none does: a record that cannot be accepted, an error
    and Ctrl-C leave nothing behind. Bad records are named by their lines.
    """
    if path != STANDARD and not os.path.exists(path):
        raise click.UsageError(f"{printable(path)} does not exist")
    if os.path.isdir(path):
        raise click.UsageError(f"{printable(path)} is a folder")
    url = resolve_server(server)

    from tailrace._bulk_sending import BulkJob, send_bulk
    from tailrace._upload_source import InputSource
    from tailrace_common_api import Reporting

    source = InputSource(path=None if path == STANDARD else path, encoding=None, follow=False, until_exit=None)
    job = BulkJob(
        collection=collection,
        source=source,
        key=key,
        key_field=key_field,
        content_type=content_type,
        reporting=Reporting.ALL if all_problems else Reporting.FIRST,
        priority=priority,
        as_json=as_json,
    )
    run_async(send_bulk(url, job))
