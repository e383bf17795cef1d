"""Every requirement as data: what is built, on which cells it must be proven, and what is not there yet.

The texts are in `REQUIREMENTS.md`. A test cites what it proves with `@proves("RES-1", …)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cells import (
    EVERY_CELL,
    LASTING_CELLS,
    PROCESS_CELLS,
    RECORD_CELLS,
    WEBSOCKET_CELLS,
    WEBSOCKET_RECORD_CELLS,
    WIRED_CELLS,
    Cell,
    RecordCell,
    StorageKind,
    Transport,
)

ONCE: frozenset[Cell] = frozenset()
"""What does not depend on transport and storage: one test suffices."""


def proves(*ids: str) -> pytest.MarkDecorator:
    """Cite the requirements that a test proves."""
    return pytest.mark.proves(*ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One line of the requirements."""

    id: str
    """Stable id."""
    cells: frozenset[Cell] | frozenset[RecordCell] = EVERY_CELL
    """Cells on each of which a test must cite it."""
    crossed: bool = False
    """Whether it must also be proven with every two different transports for upload and download."""
    built: bool = True
    """Whether any of it is there; then tests must cite it."""
    planned: str | None = None
    """What of it is not there yet; ``None``: nothing is missing."""


@dataclass(frozen=True, slots=True)
class ExpectedFailure:
    """A requirement that one cell cannot meet: its tests must fail there."""

    id: str
    transport: Transport
    storage: StorageKind
    reason: str


EXPECTED_FAILURES: tuple[ExpectedFailure, ...] = ()
"""None: every transport and storage meets all that is built."""


REQUIREMENTS = (
    Requirement(id="RES-1"),
    Requirement(id="RES-2"),
    Requirement(id="RES-3"),
    Requirement(id="RES-4"),
    Requirement(id="RES-5", crossed=True),
    Requirement(id="RES-6"),
    Requirement(id="RES-7"),
    Requirement(id="RES-8"),
    Requirement(id="RES-9"),
    Requirement(id="UPL-1"),
    Requirement(id="UPL-2"),
    Requirement(id="UPL-3"),
    Requirement(id="UPL-4"),
    Requirement(id="UPL-5"),
    Requirement(id="UPL-6"),
    Requirement(id="UPL-7"),
    Requirement(id="UPL-8"),
    Requirement(id="UPL-9", crossed=True),
    Requirement(id="UPL-10"),
    Requirement(id="UPL-11"),
    Requirement(id="UPL-12"),
    Requirement(id="UPL-13"),
    Requirement(id="UPL-14"),
    Requirement(id="UPL-15", cells=ONCE),
    Requirement(id="UPL-16"),
    Requirement(id="UPL-17"),
    Requirement(id="UPL-18"),
    Requirement(id="UPL-19"),
    Requirement(id="DWN-1", crossed=True),
    Requirement(id="DWN-2", crossed=True),
    Requirement(id="DWN-3"),
    Requirement(id="DWN-4", crossed=True),
    Requirement(id="DWN-5", crossed=True),
    Requirement(id="DWN-6"),
    Requirement(id="DWN-7"),
    Requirement(id="DWN-8"),
    Requirement(id="DWN-9"),
    Requirement(id="DWN-10", cells=WEBSOCKET_CELLS),
    Requirement(id="LIN-1"),
    Requirement(id="LIN-2", crossed=True),
    Requirement(id="LIN-3"),
    Requirement(id="LIN-4"),
    Requirement(id="LIN-5"),
    Requirement(id="LIN-6"),
    Requirement(id="INT-1"),
    Requirement(id="INT-2"),
    Requirement(id="INT-3"),
    Requirement(id="INT-4", cells=ONCE),
    Requirement(id="INT-5", cells=ONCE),
    Requirement(id="CHK-1"),
    Requirement(id="CHK-2"),
    Requirement(id="CHK-3", cells=PROCESS_CELLS),
    Requirement(id="CHK-4", cells=PROCESS_CELLS),
    Requirement(id="LIM-1"),
    Requirement(id="LIM-2"),
    Requirement(id="CTX-1"),
    Requirement(id="ACC-1"),
    Requirement(id="ACC-2", cells=WIRED_CELLS),
    Requirement(id="ACC-3"),
    Requirement(id="HOO-1"),
    Requirement(id="CON-1", cells=WIRED_CELLS),
    Requirement(id="CON-2"),
    Requirement(id="CON-3", cells=WEBSOCKET_CELLS),
    Requirement(id="CON-4"),
    *(Requirement(id=f"REC-{number}", cells=RECORD_CELLS) for number in range(7)),
    Requirement(id="REC-7", cells=WEBSOCKET_RECORD_CELLS),
    *(Requirement(id=f"REC-{number}", cells=RECORD_CELLS) for number in range(8, 13)),
    Requirement(id="USE-1", cells=ONCE),
    Requirement(id="USE-2", cells=WIRED_CELLS),
    Requirement(id="USE-3"),
    Requirement(id="USE-4"),
    Requirement(id="USE-5", cells=PROCESS_CELLS, planned="the command bench"),
    Requirement(id="USE-6", cells=PROCESS_CELLS),
)
"""All of them, in the order of `REQUIREMENTS.md`."""

BY_ID = {requirement.id: requirement for requirement in REQUIREMENTS}

__all__ = [
    "BY_ID",
    "EXPECTED_FAILURES",
    "LASTING_CELLS",
    "ONCE",
    "REQUIREMENTS",
    "ExpectedFailure",
    "Requirement",
    "proves",
]
