"""Defects that are put back at run time, each in a few lines, to see that the tests notice them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NAME_VARIABLE = "TAILRACE_SABOTEUR"
"""Environment variable that names the saboteur of a test run."""
LOG_VARIABLE = "TAILRACE_SABOTEUR_LOG"
"""Environment variable that names the file in which a saboteur leaves its trace once it has done something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saboteur:
    """A defect, and who must notice it."""

    name: str
    ids: tuple[str, ...]
    """Requirements whose tests must fail."""
    trap: str | None
    """The known trap that it springs; ``None`` for a defect of another kind."""
    cell: str
    """Where the tests are run."""
    put_back: Callable[[], None]
    """Puts the defect into the code."""


SABOTEURS: list[Saboteur] = []


def executed() -> None:
    """Leave a trace: the defect was not only put in but also met."""
    path = os.environ.get(LOG_VARIABLE)
    if path:
        Path(path).touch()


def saboteur(
    *ids: str, trap: str | None = None, cell: str = "in-process-memory"
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function that puts a defect into the code."""

    def register(put_back: Callable[[], None]) -> Callable[[], None]:
        name = put_back.__name__.replace("_", "-")
        SABOTEURS.append(Saboteur(name=name, ids=ids, trap=trap, cell=cell, put_back=put_back))
        return put_back

    return register


def apply(name: str) -> None:
    """Put a defect into the code of this process.

    Raises:
        KeyError: There is none of this name.
    """
    {each.name: each for each in SABOTEURS}[name].put_back()


def apply_from_environment() -> None:
    """Do what the environment asks for, if it does."""
    name = os.environ.get(NAME_VARIABLE)
    if name:
        apply(name)
