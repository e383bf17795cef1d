"""Free memory in one and the same state before whatever takes much of it.

A virtual machine whose balloon reports free pages (`page_reporting` of Linux) loses each to its host about two seconds
after it was freed, and who takes it next waits until the host has found another one. A new file is then written at a
tenth of the speed that it has on pages that were freed a moment ago: 0.5 instead of 5 GB/s, for identical code. What a
measurement would tell is how long ago somebody else has freed something.
"""

from __future__ import annotations

import os
from pathlib import Path

_PIECE = bytes(1 << 20)


def refresh_memory(folder: Path, size: int) -> None:
    """Write ``size`` bytes to a new file and remove it, so that its pages are the next that are taken.

    Raises:
        OSError: The folder has no room for that.
    """
    path = folder / "fresh-memory"
    with path.open("xb", buffering=0) as file:
        try:
            for _ in range(0, size, len(_PIECE)):
                file.write(_PIECE)
        finally:
            os.unlink(path)
