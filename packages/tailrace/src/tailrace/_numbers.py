"""Numbers as options of commands, and what is said of those that are none."""

from __future__ import annotations

from typing import Any

import click


class WholeNumber(click.IntRange):
    """A whole number within a range."""

    name = "whole number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            int(str(value))
        except ValueError:
            self.fail(f"{str(value)!a} is not a whole number", param, ctx)
        return super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A number within a range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            float(str(value))
        except ValueError:
            self.fail(f"{str(value)!a} is not a number", param, ctx)
        return super().convert(value, param, ctx)
