"""`tailrace head`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from tailrace._messages import printable, say
from tailrace._output import STANDARD


@click.command()
@click.argument("file", metavar="FILE|-")
def head(file: str) -> None:
    """Print the head of a local file: 32 hex digits.

    It is the head of a resource with the same bytes, so it tells whether what was received is what was sent.
    """
    from tailrace_impl_common import head_of_file

    if file != STANDARD and not os.path.exists(file):
        raise click.UsageError(f"{printable(file)} does not exist")
    try:
        digest = head_of_file(sys.stdin.buffer if file == STANDARD else Path(file))
    except OSError as error:
        error.filename = error.filename or "standard input"
        raise
    say(digest.hex())
