"""`tailrace work`."""

from __future__ import annotations

import shutil

import click

from tailrace._messages import printable
from tailrace._numbers import Number, WholeNumber
from tailrace._references import resolve_server, server_option
from tailrace._running import Interruption, run_async


@click.command(short_help="Run a command for each record of a queue.")
@click.argument("queue", metavar="QUEUE")
@click.argument("command", metavar="-- COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@server_option
@click.option(
    "--credit", type=WholeNumber(min=1), default=1, show_default=True, metavar="N", help="Commands at the same time."
)
@click.option(
    "--credit-bytes",
    type=WholeNumber(min=1),
    default=16 * 1024 * 1024,
    show_default=True,
    metavar="BYTES",
    help="Most bytes of their records; a larger one comes alone.",
)
@click.option(
    "--retry-delay",
    type=Number(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time until a record whose command failed comes again, to whoever takes it.",
)
@click.option(
    "--dead-letter-exit-code",
    type=WholeNumber(1, 255),
    metavar="CODE",
    help="Exit code with which a command says that its record belongs to the dead letters, such as 65.",
)
@click.option("--once", is_flag=True, help="End when one record has been worked on.")
@click.option("--max-records", type=WholeNumber(min=1), metavar="N", help="End when N records have been worked on.")
@click.option("--drain", is_flag=True, help="End when no record waits in the queue; other workers' are not waited for.")
@click.option(
    "--grace",
    type=Number(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for running commands to end on SIGINT or SIGTERM.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, one answer in a line; output of commands is on standard error."
)
def work(
    queue: str,
    command: tuple[str, ...],
    server: str | None,
    credit: int,
    credit_bytes: int,
    retry_delay: float,
    dead_letter_exit_code: int | None,
    once: bool,
    max_records: int | None,
    drain: bool,
    grace: float,
    as_json: bool,
) -> None:
    """Run a command for each record of a queue, which it gets on its standard input.

    Exit code 0 says that the record is done. With another one it is delivered again after --retry-delay, with that of
    --dead-letter-exit-code it goes to the dead letters, the queue QUEUE.dead. While a command runs, its record is
    nobody else's. TAILRACE_RECORD_ID, _ATTEMPT, _PRIORITY, _QUEUE and, if it has one, _KEY are in the environment.

    Behind the first SIGINT or SIGTERM no record is taken, running commands have the grace to end, and what is left is
    given back; the second one ends commands at once.
    """
    if once and max_records is not None:
        raise click.UsageError("--once and --max-records exclude each other")
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no command {printable(command[0])}")
    url = resolve_server(server)

    from tailrace._working import WorkJob, work_queue

    job = WorkJob(
        queue=queue,
        command=command,
        credit=credit,
        credit_bytes=credit_bytes,
        retry_delay=retry_delay,
        dead_letter_exit_code=dead_letter_exit_code,
        most=1 if once else max_records,
        drain=drain,
        grace=grace,
        as_json=as_json,
    )
    interruption = Interruption()
    run_async(work_queue(url, job, interruption), interruption, starts_processes=True)
