"""`tailrace status`."""

from __future__ import annotations

from contextlib import aclosing

import click

from tailrace._messages import say
from tailrace._references import Target, reference_argument, resolve_reference, server_option
from tailrace._running import run_async
from tailrace._status_report import json_line, status_fields, status_row, status_text


@click.command()
@reference_argument
@server_option
@click.option("--watch", is_flag=True, help="Print the status whenever it changes, until the resource has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object in a line.")
def status(reference: str, server: str | None, watch: bool, as_json: bool) -> None:
    """Show the status of a resource: state, size, lines, head."""
    run_async(_status(resolve_reference(reference, server), watch, as_json))


async def _status(target: Target, watch: bool, as_json: bool) -> None:
    from tailrace._connect import connect

    async with connect(target.url) as client:
        if not watch:
            current = await client.status(target.id)
            say(json_line(status_fields(current)) if as_json else status_text(current))
            return
        async with client.open(target.id) as resource, aclosing(resource.statuses()) as statuses:
            async for current in statuses:
                say(json_line(status_fields(current)) if as_json else status_row(current))
