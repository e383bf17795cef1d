"""The command line as a whole: its commands, and what its errors become."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from tailrace._exit_codes import ExitCode, exit_code_of
from tailrace._messages import AlreadyReported, complain, describe
from tailrace._running import Interrupted
from tailrace._signals import HANDLER
from tailrace_common_api import TailraceError

# Module and attribute by command, in the order of the help.
_COMMANDS = {
    "serve": "serve:serve",
    "upload": "upload:upload",
    "follow": "follow:follow",
    "download": "download:download",
    "lines": "lines:lines",
    "status": "status:status",
    "list": "list:list_resources",
    "delete": "delete:delete",
    "context": "context:context",
    "bulk": "bulk:bulk",
    "query": "query:query",
    "work": "work:work",
    "queue": "queue:queue",
    "token": "token:token",
    "verify": "verify:verify",
    "head": "head:head",
    "demo": "demo:demo",
    "bench": "bench:bench",
}


class _OutputClosed(Exception):
    """Nobody reads standard output any more."""


class _LazyGroup(click.Group):
    """Imports a command when it is used, so that none pays for the others."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would make a failure of it.
            raise _OutputClosed from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(f"tailrace._commands.{module}"), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tailrace")
def tailrace() -> None:
    """Live byte streams: upload while it is produced, follow while it grows. Records: bulk, query, work.

    REF is a reference, such as grpc://host:7070/r/ID or http://host:7080/r/ID, or a bare ID. A bare ID needs --server
    or TAILRACE_SERVER.

    Exit codes: 0 success, 1 failed, 2 wrong usage, 3 unknown, deleted or malformed reference or name, 4 integrity, 5
    quota or access, 130 interrupted.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: Arguments without the name of the program; ``None`` for those of the process.
    """
    try:
        return _run(arguments)
    finally:
        _discard_unwritable_output()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with HANDLER.raising():
            code = tailrace.main(arguments, prog_name="tailrace", standalone_mode=False)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return ExitCode.USAGE if isinstance(error, click.UsageError) else ExitCode.FAILED
    except AlreadyReported as reported:
        return exit_code_of(reported.error)
    except TailraceError as error:
        complain(str(error))
        return exit_code_of(error)
    except (Interrupted, click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except _OutputClosed:
        return ExitCode.SUCCESS
    except OSError as error:
        complain(describe(error))
        return ExitCode.FAILED
    return code if isinstance(code, int) else ExitCode.SUCCESS


def _discard_unwritable_output() -> None:
    """Let what is left in the buffers and cannot be written go nowhere: their flush at exit would complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
