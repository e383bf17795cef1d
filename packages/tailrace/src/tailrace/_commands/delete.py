"""`tailrace delete`."""

from __future__ import annotations

import click

from tailrace._references import Target, reference_argument, resolve_reference, server_option
from tailrace._running import run_async


@click.command()
@reference_argument
@server_option
def delete(reference: str, server: str | None) -> None:
    """Delete a resource; its uploader and its readers are told."""
    run_async(_delete(resolve_reference(reference, server)))


async def _delete(target: Target) -> None:
    from tailrace._connect import connect

    async with connect(target.url) as client:
        await client.delete(target.id)
