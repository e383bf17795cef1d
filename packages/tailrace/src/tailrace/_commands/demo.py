"""`tailrace demo`."""

from __future__ import annotations

import sys

import click

from tailrace._running import run_async


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
def demo(command: tuple[str, ...]) -> int:
    """Show everything at once, on a scratch folder.

    Starts a server, uploads the live output of COMMAND over gRPC while following it over WebSocket, and compares what
    arrived. Without COMMAND, the installed standard library is compiled and checksummed, verbosely.
    """
    from tailrace._demonstration import demonstrate

    work = list(command) or [sys.executable, "-P", "-m", "tailrace._standard_library_work"]
    return run_async(demonstrate(work))
