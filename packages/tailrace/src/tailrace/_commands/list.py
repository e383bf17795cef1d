"""`tailrace list`."""

from __future__ import annotations

from contextlib import aclosing

import click

from tailrace._labels import parse_labels
from tailrace._messages import printable, say
from tailrace._references import resolve_server, server_option
from tailrace._running import run_async
from tailrace._status_report import json_line, status_fields, status_row
from tailrace_common_api import ListFilter, ResourceState


@click.command("list")
@server_option
@click.option("--label", "labels", metavar="K=V", multiple=True, help="Only resources with this label; repeatable.")
@click.option(
    "--state",
    type=click.Choice([state.value for state in ResourceState], case_sensitive=False),
    help="Only resources in this state.",
)
@click.option("--context", metavar="ID", help="Only resources of this context.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object in a line.")
def list_resources(
    server: str | None, labels: tuple[str, ...], state: str | None, context: str | None, as_json: bool
) -> None:
    """List resources, oldest first."""
    chosen = ListFilter(
        labels=parse_labels(labels), context=context, state=ResourceState(state.upper()) if state else None
    )
    run_async(_list(resolve_server(server), chosen, as_json))


async def _list(url: str, chosen: ListFilter, as_json: bool) -> None:
    from tailrace._connect import connect

    async with connect(url) as client, aclosing(client.list(chosen)) as statuses:
        async for status in statuses:
            if as_json:
                say(json_line(status_fields(status)))
            else:
                say(f"{status.reference}  {status_row(status, printable(status.metadata.name))}")
