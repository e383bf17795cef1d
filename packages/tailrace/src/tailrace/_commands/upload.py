"""`tailrace upload`."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import click

from tailrace._content_types import UNKNOWN, guess_content_type, has_lines
from tailrace._labels import parse_labels
from tailrace._messages import printable
from tailrace._numbers import WholeNumber
from tailrace._output import STANDARD
from tailrace._references import resolve_server, server_option
from tailrace._running import Interruption, run_async

if TYPE_CHECKING:
    from tailrace_client_upload_api import WhileAway


@click.command()
@click.argument("path", metavar="PATH|-")
@server_option
@click.option("--name", metavar="N", help="Name of the resource; that of the file by default.")
@click.option("--content-type", metavar="T", help="Media type; guessed from the name by default.")
@click.option("--lines/--no-lines", default=None, help="Line access; on by default for text, JSON and standard input.")
@click.option("--encoding", metavar="E", help="Encoding of the input, which is uploaded as UTF-8.")
@click.option("--follow", is_flag=True, help="Go on as the file grows; it need not exist yet.")
@click.option("--until-exit", type=WholeNumber(min=1), metavar="PID", help="With --follow: end when PID has ended.")
@click.option("--atomic", is_flag=True, help="Let nobody see the resource before it is complete.")
@click.option("--label", "labels", metavar="K=V", multiple=True, help="Label; repeatable.")
@click.option("--context", metavar="ID", help="Context that is to own the resource; see `tailrace context`.")
@click.option(
    "--while-away",
    type=click.Choice(["wait", "spool", "drop"]),
    default="wait",
    show_default=True,
    help="What becomes of the input while the server is away or slow: it waits, goes to disk, or loses its oldest"
    " lines, with a line in their place that says so.",
)
@click.option(
    "--spool-dir",
    metavar="DIR",
    help="With --while-away spool: folder of the spool; that of temporary files by default.",
)
@click.option(
    "--max-waiting",
    type=WholeNumber(min=1024),
    metavar="BYTES",
    help="Most bytes that wait: 1 GiB by default on disk, 16 MiB with --while-away drop.",
)
@click.option(
    "--state",
    metavar="FILE",
    help="Keep in FILE, and FILE.spool, what is needed to continue: the same command goes on where this one died.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one event in a line.")
def upload(
    path: str,
    server: str | None,
    name: str | None,
    content_type: str | None,
    lines: bool | None,
    encoding: str | None,
    follow: bool,
    until_exit: int | None,
    atomic: bool,
    labels: tuple[str, ...],
    context: str | None,
    while_away: str,
    spool_dir: str | None,
    max_waiting: int | None,
    state: str | None,
    as_json: bool,
) -> None:
    """Upload a file, or standard input (-) as it comes.

    The first line of output is the reference, printed as soon as it exists: others can follow the resource from then
    on. The first SIGINT or SIGTERM ends the input and completes the upload (with --atomic it aborts it), the second
    one aborts it.
    """
    if until_exit is not None and not follow:
        raise click.UsageError("--until-exit needs --follow")
    if path == STANDARD and follow:
        raise click.UsageError("standard input is followed anyway; --follow is for files")
    if path != STANDARD:
        if not follow and not os.path.exists(path):
            raise click.UsageError(f"{printable(path)} does not exist; --follow waits for it")
        if os.path.isdir(path):
            raise click.UsageError(f"{printable(path)} is a folder")
        if follow and os.path.exists(path) and not os.path.isfile(path):
            raise click.UsageError(f"{printable(path)} is no regular file; without --follow it is read to its end")
    if spool_dir is not None and while_away != "spool":
        raise click.UsageError("--spool-dir needs --while-away spool")
    if state is not None and while_away != "wait":
        raise click.UsageError(
            "--state has a spool of its own where one is needed; --while-away is for uploads without"
        )
    if max_waiting is not None and while_away == "wait" and state is None:
        raise click.UsageError("--max-waiting needs --while-away or --state")
    parsed_labels = parse_labels(labels)
    url = resolve_server(server or _server_of(state))

    from tailrace._upload_source import InputSource
    from tailrace._uploading import Job, upload_job
    from tailrace_common_api import Metadata, Visibility
    from tailrace_impl_common import DEFAULT_SPOOL_BYTES, Transcoder

    if encoding is not None:
        Transcoder(encoding)  # Refuses an unknown one before anything is sent.
    chosen_name = name or ("stdin" if path == STANDARD else printable(os.path.basename(os.path.abspath(path))))
    chosen_type = content_type or _guess(chosen_name, path, encoding)
    metadata = Metadata(
        name=chosen_name,
        content_type=chosen_type,
        lines=lines if lines is not None else path == STANDARD or has_lines(chosen_type),
        labels=parsed_labels,
        context=context,
    )
    job = Job(
        source=InputSource(
            path=None if path == STANDARD else path, encoding=encoding, follow=follow, until_exit=until_exit
        ),
        metadata=metadata,
        visibility=Visibility.ATOMIC if atomic else Visibility.LIVE,
        while_away=_policy(while_away, spool_dir, max_waiting),
        state=state,
        max_spooled=max_waiting or DEFAULT_SPOOL_BYTES,
        as_json=as_json,
    )
    interruption = Interruption()
    run_async(upload_job(url, job, interruption), interruption)


def _server_of(state: str | None) -> str | None:
    """Return the server that a state file names, if there is one."""
    if state is None:
        return None
    from tailrace_impl_common import UploadStateFile

    saved = UploadStateFile(state).load()
    return None if saved is None else " ".join(saved.urls)


def _policy(name: str, spool_dir: str | None, max_waiting: int | None) -> WhileAway:
    from tailrace_client_upload_api import WAIT, DropOldest, SpoolToDisk

    if name == "spool":
        directory = spool_dir or tempfile.gettempdir()
        return (
            SpoolToDisk(directory=directory, max_bytes=max_waiting) if max_waiting else SpoolToDisk(directory=directory)
        )
    if name == "drop":
        return DropOldest(max_bytes=max_waiting) if max_waiting else DropOldest()
    return WAIT


def _guess(name: str, path: str, encoding: str | None) -> str:
    """Guess the media type: what is piped in without a telling name is mostly text."""
    guessed = guess_content_type(name)
    if guessed == UNKNOWN and (path == STANDARD or encoding is not None):
        guessed = "text/plain"
    if encoding is not None and guessed.startswith("text/") and "charset" not in guessed:
        guessed += "; charset=utf-8"
    return guessed
