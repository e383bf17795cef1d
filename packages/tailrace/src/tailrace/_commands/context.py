"""`tailrace context`."""

from __future__ import annotations

from contextlib import aclosing

import click

from tailrace._context_report import context_fields, context_text, event_fields, event_row
from tailrace._labels import parse_labels
from tailrace._messages import say
from tailrace._references import resolve_server, server_option
from tailrace._running import run_async
from tailrace._status_report import json_line
from tailrace_common_api import Context, ContextEvent

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object in a line.")


@click.group()
def context() -> None:
    """Contexts: scopes that own resources, such as a test run or a build."""


@context.command()
@server_option
@click.option("--attribute", "attributes", metavar="K=V", multiple=True, help="Say this of the context; repeatable.")
@_json_option
def create(server: str | None, attributes: tuple[str, ...], as_json: bool) -> None:
    """Create a context and print its id, for `tailrace upload --context`."""
    parsed = parse_labels(attributes, what="attribute")
    run_async(_create(resolve_server(server), parsed, as_json))


@context.command()
@click.argument("id", metavar="ID")
@server_option
@click.option("--events", is_flag=True, help="Print what has happened in it, too.")
@click.option("--follow", is_flag=True, help="Print what happens in it, until it is closed.")
@_json_option
def show(id: str, server: str | None, events: bool, follow: bool, as_json: bool) -> None:
    """Show a context: its state, what it has, and what happened in it.

    A server keeps the last events of a context only, and only for as long as it runs.
    """
    run_async(_show(resolve_server(server), id, events or follow, follow, as_json))


@context.command()
@click.argument("id", metavar="ID")
@server_option
@_json_option
def close(id: str, server: str | None, as_json: bool) -> None:
    """Close a context: its unfinished uploads fail, and it takes no more. What it has stays readable."""
    run_async(_close(resolve_server(server), id, as_json))


async def _create(url: str, attributes: dict[str, str], as_json: bool) -> None:
    from tailrace._connect import connect

    async with connect(url) as client:
        created = await client.create_context(attributes)
        say(json_line(context_fields(created)) if as_json else created.id)


async def _show(url: str, id: str, events: bool, follow: bool, as_json: bool) -> None:
    from tailrace._connect import connect

    async with connect(url) as client:
        shown = await client.get_context(id)
        _say_context(shown, as_json)
        if not events or (not follow and not shown.last_event):
            return
        async with aclosing(client.context_events(id)) as happened:
            async for event in happened:
                if not follow and event.sequence > shown.last_event:
                    return
                _say_event(event, as_json)
                if not follow and event.sequence == shown.last_event:
                    return


async def _close(url: str, id: str, as_json: bool) -> None:
    from tailrace._connect import connect

    async with connect(url) as client:
        _say_context(await client.close_context(id), as_json)


def _say_context(shown: Context, as_json: bool) -> None:
    say(json_line(context_fields(shown)) if as_json else context_text(shown))


def _say_event(event: ContextEvent, as_json: bool) -> None:
    say(json_line(event_fields(event)) if as_json else event_row(event))
