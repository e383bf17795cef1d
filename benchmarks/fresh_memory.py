"""Free memory in one and the same state before whatever takes much of it.

A virtual machine whose balloon reports free pages (`page_reporting` of Linux) loses them to its host at every pass over
what is free, the first of them two seconds after something was freed, and whoever takes such a page next waits until
the host has found another one. A new file is then written at a tenth of the speed that it has on pages that were in use
a moment ago: 0.5 instead of 5 GB/s, for identical code. What a measurement would tell is how long ago somebody else has
freed something.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_PIECE = bytes(1 << 20)
_REPORTING = Path("/sys/module/page_reporting")
_PASS = 2.2
"""Seconds after which a pass over free memory that was about to begin has ended."""


def refresh_memory(folder: Path, size: int) -> None:
    """Write ``size`` bytes to a new file and remove it, so that its pages are the next that are taken.

    It is removed behind the pass that earlier ones have brought about, so that the next one is two seconds off.

    Raises:
        OSError: The folder has no room for that.
    """
    path = folder / "fresh-memory"
    with path.open("xb", buffering=0) as file:
        try:
            for _ in range(0, size, len(_PIECE)):
                file.write(_PIECE)
            if _REPORTING.exists():
                time.sleep(_PASS)
        finally:
            os.unlink(path)
