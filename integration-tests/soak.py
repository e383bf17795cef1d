"""Sizes and seeds of a run: short ones for every check, long ones when `TAILRACE_SOAK` is set."""

from __future__ import annotations

import os

SOAK = bool(os.environ.get("TAILRACE_SOAK"))
"""Whether long sizes are wanted."""
SEED = int(os.environ.get("TAILRACE_SEED", "9"))
"""What makes chance repeatable; `make soak` takes another one each time."""
