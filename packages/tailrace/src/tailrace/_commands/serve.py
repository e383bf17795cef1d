"""`tailrace serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import click

from tailrace._collector import keep_what_is_loaded, pause_collector
from tailrace._logging import configure_logging
from tailrace._malloc import give_back_at_rest
from tailrace._messages import say
from tailrace._running import Interruption, run_async
from tailrace._settings import Settings, load_settings
from tailrace._status_report import json_line


@click.command(short_help="Serve resources until SIGINT or SIGTERM.")
@click.option("--data", metavar="DIR", help="Folder of the resources; ./tailrace-data by default.")
@click.option("--grpc", metavar="HOST:PORT", help="Address for gRPC; 127.0.0.1:7070 by default, port 0 for any.")
@click.option("--http", metavar="HOST:PORT", help="Address for WebSocket and HTTP; 127.0.0.1:7080 by default.")
@click.option("--config", metavar="FILE", help="Settings file; TAILRACE_CONFIG or ./tailrace.toml by default.")
@click.option("--tokens", metavar="FILE", help="File of `tailrace token`: let in only who has one of its tokens.")
@click.option("--insecure", is_flag=True, help="Let the network in without access control, or without TLS.")
@click.option("--grace", metavar="SECONDS", help="Time for running requests to end on SIGTERM; 5 by default.")
@click.option("--log-format", metavar="FORMAT", help="Form of the log: text, the default, or json.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the server is ready.")
def serve(
    data: str | None,
    grpc: str | None,
    http: str | None,
    config: str | None,
    tokens: str | None,
    insecure: bool,
    grace: str | None,
    log_format: str | None,
    as_json: bool,
) -> None:
    """Serve resources over gRPC, WebSocket and HTTP until SIGINT or SIGTERM.

    Who can reach an address of the network has to show a token, over TLS: a server without either listens on loopback
    addresses only, unless --insecure is given.

    The first signal lets running requests end within the grace, the second one ends the server at once.
    """
    pause_collector()
    given = {"data": data, "grpc": grpc, "http": http, "grace": grace, "log_format": log_format}
    given_flags = {"insecure": True if insecure else None}
    settings = load_settings({"serve": {**given, **given_flags}, "storage": {"tokens": tokens}}, config=config)
    configure_logging(settings.serve.log_level, settings.serve.log_format)
    _raise_descriptor_limit()
    interruption = Interruption()
    run_async(_serve(settings, as_json, interruption), interruption)


async def _serve(settings: Settings, as_json: bool, interruption: Interruption) -> None:
    from tailrace._serving import serve_resources
    from tailrace_impl_common import cancel_and_wait

    stop = asyncio.Event()
    # The first signal ends the server in order, the second one at once.
    interruption.handlers.append(stop.set)
    async with serve_resources(settings, grace=settings.serve.grace) as urls:
        keep_what_is_loaded()
        giving_back = asyncio.create_task(give_back_at_rest())
        try:
            if as_json:
                say(json_line({"event": "ready", **urls}))
            else:
                say(f"gRPC on {_of(urls, 'grpc')}")
                say(f"WebSocket on {_of(urls, 'ws')}, HTTP on {_of(urls, 'http')}")
            await stop.wait()
        finally:
            await cancel_and_wait(giving_back)


def _of(urls: Mapping[str, str], scheme: str) -> str:
    """Return the URL of a scheme, with or without TLS."""
    return urls[scheme] if scheme in urls else urls[f"{scheme}s"]


def _raise_descriptor_limit() -> None:
    """Allow as many open files and connections as the system lets this user have."""
    try:
        import resource
    except ImportError:  # Not on this system.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems announce a limit that they then refuse.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
