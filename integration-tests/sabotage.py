"""How a defect is put back at run time: registry, activation, and the trace that shows that it was met."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME_VARIABLE = "TAILRACE_SABOTEUR"
"""Environment variable that names the saboteur of a test run."""
LOG_VARIABLE = "TAILRACE_SABOTEUR_LOG"
"""Environment variable that names the file in which a saboteur leaves its trace once it has done something."""

TRAPS = {
    "trailing-edge": "the last bytes of a burst are never announced",
    "index-ahead": "a line read returns part of the next line, because the index is ahead of the announced size",
    "completed-flips": "COMPLETED turns into FAILED because the connection drops behind the acknowledgement",
    "late-failure": "a quota failure reaches the uploader only when it finishes",
    "late-cancel": "cancelling is noticed only at the end of the source",
    "overtaken-status": "a change between looking and listening is missed, and the follower waits for ever",
    "stuck-connection": "a failed request leaves a connection on which nothing more is delivered",
    "hanging-caller": "unknown ids, bad ranges and wrong messages hang the caller",
    "last-chunk": "the hash of the last chunk is never checked",
    "empty-transfer": "an empty transfer sends nothing, not even its name",
    "buffered-transfer": "the receiver holds the whole transfer in memory",
    "blocked-worker": "a conversation that streams blocks the others, so that what it waits for never arrives",
    "purge-then-commit": "what was purged after an abort is committed after all",
    "reader-lock": "the lock of a reader stops the writer",
    "state-after-sending": "state is set after a message is sent, and the answer is there first",
    "status-order": "statuses arrive out of order",
    "leaking-handles": "files that were opened for a reader are never closed",
    "threads-per-upload": "every upload has a thread of its own",
    "shared-poller": "grpc.aio logs errors when several event loops share its poller",
}
"""Known traps of systems of this kind; each has a saboteur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saboteur:
    """A defect, and who must notice it."""

    name: str
    ids: tuple[str, ...]
    """Requirements whose tests must notice: at least one of them."""
    trap: str | None
    """The known trap that it springs; ``None`` for a defect of another kind."""
    cell: str
    """Where the tests run."""
    put_back: Callable[[], None]
    """Puts the defect into the code."""


SABOTEURS: list[Saboteur] = []
"""All of them; filled by the modules that `saboteurs` imports."""


def put(owner: Any, name: str, defect: Any) -> Any:
    """Replace an attribute of a module or class by a defect, and return what was there.

    Raises:
        AttributeError: There is none of this name: the code has changed, and the saboteur has to follow.
    """
    real = getattr(owner, name)
    setattr(owner, name, defect)
    return real


def executed() -> None:
    """Leave a trace: the defect was not only put in but also met. Every saboteur calls it where it does its harm."""
    path = os.environ.get(LOG_VARIABLE)
    if path and not _traced:
        _traced.append(path)
        os.close(os.open(Path(path), os.O_WRONLY | os.O_CREAT, 0o600))


_traced: list[str] = []


def saboteur(
    *ids: str, trap: str | None = None, cell: str = "in-process-memory"
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function that puts a defect into the code; its name is the saboteur's."""
    assert trap is None or trap in TRAPS

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
