"""All saboteurs: defects that are put back at run time, each in a few lines, to see that the tests notice them."""

from __future__ import annotations

import importlib
from pathlib import Path

from sabotage import LOG_VARIABLE, NAME_VARIABLE, SABOTEURS, TRAPS, Saboteur, apply, apply_from_environment

for _path in sorted(Path(__file__).parent.glob("saboteurs_of_*.py")):
    importlib.import_module(_path.stem)

__all__ = [
    "LOG_VARIABLE",
    "NAME_VARIABLE",
    "SABOTEURS",
    "TRAPS",
    "Saboteur",
    "apply",
    "apply_from_environment",
]
