"""The stream that survives everything, at a size for every check; see `survive.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from cells import PROCESS_CELLS, Cell
from manifest import proves
from soak import SOAK
from survive import MEBIBYTE, survive


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.timeout(1800 if SOAK else 400)
@proves("UPL-9", "DWN-5", "RES-5", "USE-6")
async def test_a_stream_survives_kills_and_cuts(cell: Cell, tmp_path: Path) -> None:
    size = (2048 if SOAK else 20) * MEBIBYTE
    kills, cuts = (10, 20) if SOAK else (2, 4)
    survived = await survive(tmp_path, cell.transport, size=size, kills=kills, cuts=cuts)
    assert survived.size == size
    assert len(survived.head) == 32
