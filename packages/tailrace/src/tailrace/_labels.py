"""Labels on the command line."""

from __future__ import annotations

from collections.abc import Sequence

import click


def parse_labels(texts: Sequence[str]) -> dict[str, str]:
    """Return labels given as ``K=V``.

    Raises:
        click.UsageError: One has no ``=``, or a key comes twice.
    """
    labels: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise click.UsageError(f"label {text!r} is not K=V")
        if key in labels:
            raise click.UsageError(f"label {key!r} is given twice")
        labels[key] = value
    return labels
