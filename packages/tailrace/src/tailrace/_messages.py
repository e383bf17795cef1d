"""What is said on standard output and standard error."""

from __future__ import annotations

from contextlib import suppress

import click

from tailrace_common_api import TailraceError


class AlreadyReported(Exception):
    """A command has failed with ``error``, and has said so in better words; the exit code is the error's."""

    def __init__(self, error: TailraceError) -> None:
        super().__init__(str(error))
        self.error = error


def say(text: str) -> None:
    """Print a line on standard output, at once.

    Raises:
        OSError: Standard output cannot be written; the error names it.
    """
    try:
        click.echo(text)
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def complain(text: str) -> None:
    """Print a line on standard error; where that cannot be written, the exit code has to say it."""
    with suppress(OSError):
        click.echo(f"tailrace: {printable(text)}", err=True)


def describe(error: OSError) -> str:
    """Return what went wrong with which file, for people."""
    problem = error.strerror or str(error)
    return problem if error.filename is None else f"{error.filename}: {problem}"


def printable(text: str) -> str:
    """Return text of a server or of a file name so that it cannot control the terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
