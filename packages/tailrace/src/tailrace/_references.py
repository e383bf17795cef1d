"""From what the user names to a server and a resource on it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import click

from tailrace._connect import client_urls
from tailrace._messages import printable
from tailrace._settings import load_settings
from tailrace_common_api import InvalidReference, Reference

server_option = click.option(
    "--server",
    metavar="URL[,URL]",
    help="Server, whatever the reference says; bare IDs need it or TAILRACE_SERVER. Several URLs: ways to the same.",
)
reference_argument = click.argument("reference", metavar="REF")


@dataclass(frozen=True, slots=True)
class Target:
    """A resource on a server."""

    url: str
    """URL to connect to, or several."""
    id: str
    """Resource id."""


def resolve_reference(reference: str, server: str | None) -> Target:
    """Find out which resource on which server is meant.

    Args:
        reference: A reference or a bare id.
        server: Value of ``--server``; comes before the server that the reference names.

    Raises:
        InvalidReference: ``reference`` is malformed.
        click.UsageError: No server is known.
        ConfigurationError: ``server`` is no URL, or the settings cannot work.
    """
    parsed = Reference.parse(reference)
    return Target(resolve_server(server or parsed.base), parsed.id)


def resolve_server(server: str | None) -> str:
    """Return the URL (or several, in one text) of the server to use: what is given, or what the settings name.

    Raises:
        click.UsageError: Neither is there, or it is the reference of a resource.
        ConfigurationError: It is no URL, or the settings cannot work.
    """
    url = server or load_settings().server
    if url is None:
        raise click.UsageError("no server is named; give --server URL or set TAILRACE_SERVER")
    with suppress(InvalidReference):
        if (base := Reference.parse(url).base) is not None:
            raise click.UsageError(f"{printable(url)} is a resource; its server is {printable(base)}")
    return " ".join(client_urls(url))
