"""`tailrace queue`."""

from __future__ import annotations

import click

from tailrace._messages import printable, say
from tailrace._references import resolve_server, server_option
from tailrace._running import run_async
from tailrace._status_report import json_line


@click.command(short_help="Show how much work there is in a queue.")
@click.argument("name", metavar="NAME")
@server_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def queue(name: str, server: str | None, as_json: bool) -> None:
    """Show how much work there is in a queue; that of its dead letters is NAME.dead."""
    run_async(_queue(resolve_server(server), name, as_json))


async def _queue(url: str, name: str, as_json: bool) -> None:
    from tailrace._connect import connect

    async with connect(url) as client:
        figures = await client.queue_figures(name)
    rows = {
        "queue": figures.queue,
        "ready": figures.ready,
        "delayed": figures.delayed,
        "in_flight": figures.in_flight,
        "dead": figures.dead,
        "consumers": figures.consumers,
        "stalled": figures.stalled,
    }
    if as_json:
        say(json_line(rows))
        return
    for row, value in rows.items():
        say(f"{row.replace('_', ' ') + ':':14}{printable(value) if isinstance(value, str) else f'{value:,}'}")
