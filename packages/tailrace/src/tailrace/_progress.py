"""Progress on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from tailrace._messages import printable

Report = Callable[[int], None]
"""Takes the number of bytes, or of records, so far."""


def _ignore(size: int) -> None:
    """Show nothing."""


@contextmanager
def transfer_progress(name: str, total: int | None, *, shown: bool = True) -> Generator[Report, None, None]:
    """Show how a transfer goes, on standard error if that is a terminal; elsewhere nothing is shown.

    Args:
        name: What is transferred.
        total: Bytes in all; ``None`` when that is not known.
        shown: Whether to show anything at all.
    """
    if not shown or not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        FileSizeColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    amount: list[ProgressColumn] = [FileSizeColumn()] if total is None else [BarColumn(), DownloadColumn()]
    columns = (TextColumn("{task.description}"), *amount, TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(escape(printable(name)), total=total)
        yield lambda size: progress.update(task, completed=size)


@contextmanager
def record_progress(name: str, *, shown: bool = True) -> Generator[Report, None, None]:
    """Show how many records have come or gone, on standard error if that is a terminal; elsewhere nothing is shown.

    Args:
        name: What the records are of.
        shown: Whether to show anything at all.
    """
    if not shown or not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,} records"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(escape(printable(name)), total=None, rate="")

        def report(records: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, completed=records, rate="" if speed is None else f"{speed:,.0f}/s")

        yield report
