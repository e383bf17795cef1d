"""Half-open ranges on the command line: ``A:B``, where either may be missing."""

from __future__ import annotations

import re

import click

_RANGE = re.compile(r"([0-9]*):([0-9]*)\Z")


def parse_range(text: str) -> tuple[int, int | None]:
    """Return start and end of ``A:B``; a missing start is 0, a missing end ``None``.

    Raises:
        click.UsageError: It is none, or ends before it starts.
    """
    match = _RANGE.match(text)
    if match is None:
        raise click.UsageError(f"{text!r} is not a range such as 10:20, 10: or :20")
    start = int(match[1] or 0)
    end = int(match[2]) if match[2] else None
    if end is not None and end < start:
        raise click.UsageError(f"range {text!r} ends before it starts")
    return start, end
