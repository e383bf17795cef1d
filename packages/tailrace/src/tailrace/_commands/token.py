"""`tailrace token`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from tailrace._messages import complain, say
from tailrace._settings import load_settings
from tailrace._status_report import json_line
from tailrace._token_store import TokenEntry, TokenStore, open_token_store
from tailrace_common_api import ConfigurationError
from tailrace_server_api import Operation

DEFAULT_TOKENS = "tokens.json"
"""File that is used where neither option nor settings name one."""

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SCOPES = tuple(operation.value for operation in Operation)

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object in a line.")


def _file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which file it is for."""
    where = f"File of the tokens; the setting storage.tokens, or ./{DEFAULT_TOKENS}, by default."
    command = click.option("--config", metavar="FILE", help="Settings file, as for `tailrace serve`.")(command)
    return click.option("--file", "path", metavar="FILE", help=where)(command)


@click.group()
def token() -> None:
    """Tokens that give access to a server.

    They are kept in a file as salted hashes. A server that was started with --tokens FILE sees changes within a second,
    and needs no restart. Clients show a token with TAILRACE_CLIENT_TOKEN, or token in [client] of their settings file.
    """


@token.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(_SCOPES),
    help="What the token may be used for; repeatable.",
)
@click.option("--context", metavar="ID", help="The only context in which it may be used.")
@click.option(
    "--expires", metavar="TIME", help="How long it is valid, such as 12h, 30d or 8w; until revoked by default."
)
@_file_options
@_json_option
def add(
    name: str,
    scopes: tuple[str, ...],
    context: str | None,
    expires: str | None,
    path: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Make a token for NAME and print it: this is the only time that it can be seen."""
    seconds = None if expires is None else _parse_duration(expires)
    operations = [Operation(scope) for scope in scopes]
    made = _store(path, config).add(name, operations, context=context, expires_in=seconds)
    if as_json:
        say(json_line({"name": name, "token": made}))
        return
    say(made)
    complain(f"this is the only time that the token for {name} is shown")


@token.command("list")
@_file_options
@_json_option
def list_tokens(path: str | None, config: str | None, as_json: bool) -> None:
    """List who has a token, and for what."""
    for entry in sorted(_store(path, config).entries().values(), key=lambda entry: entry.name):
        say(json_line(_fields(entry)) if as_json else _row(entry))


@token.command()
@click.argument("name", metavar="NAME")
@_file_options
def revoke(name: str, path: str | None, config: str | None) -> None:
    """Take the token of NAME back: it is refused for everything new from then on."""
    _store(path, config).revoke(name)


def _store(path: str | None, config: str | None) -> TokenStore:
    if path is None:
        configured = load_settings(config=config).storage.get("tokens")
        path = str(configured) if configured else DEFAULT_TOKENS
    return open_token_store(path)


def _parse_duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        problem = f"{text!a} is not a number with s, m, h, d or w, such as 30d"
        raise ConfigurationError(field="expires", problem=problem)
    return float(match[1]) * _SECONDS[match[2]]


def _fields(entry: TokenEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "scopes": sorted(scope.value for scope in entry.scopes),
        "context": entry.context,
        "created_at": entry.created_at,
        "expires_at": entry.expires_at,
    }


def _row(entry: TokenEntry) -> str:
    if entry.expires_at is None:
        validity = "until revoked"
    elif time.time() >= entry.expires_at:
        validity = f"expired {_shown(entry.expires_at)}"
    else:
        validity = f"until {_shown(entry.expires_at)}"
    scopes = ",".join(sorted(scope.value for scope in entry.scopes))
    within = "" if entry.context is None else f"  context {entry.context}"
    return f"{entry.name}  {scopes}  {validity}{within}"


def _shown(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
