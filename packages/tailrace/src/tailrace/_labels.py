"""Labels on the command line."""

from __future__ import annotations

from collections.abc import Sequence

import click


def parse_labels(texts: Sequence[str], *, what: str = "label") -> dict[str, str]:
    """Return labels given as ``K=V``, or something else of the same form; ``what`` names it in errors.

    Raises:
        click.UsageError: One has no ``=``, or a key comes twice.
    """
    labels: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise click.UsageError(f"{what} {text!r} is not K=V")
        if key in labels:
            raise click.UsageError(f"{what} {key!r} is given twice")
        labels[key] = value
    return labels
