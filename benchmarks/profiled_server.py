"""`tailrace` for benchmarks only, which profiles itself from one SIGUSR2 to the next.

The first argument is the file that the profile is written to, the others are the command line's.
"""

from __future__ import annotations

import cProfile
import signal
import sys
from pathlib import Path


def profile_between_signals(path: Path) -> None:
    """Have the first SIGUSR2 begin a profile, and the second write it."""
    profile = cProfile.Profile()
    running = False

    def toggle(*_: object) -> None:
        nonlocal running
        if running:
            profile.disable()
            profile.dump_stats(path)
        else:
            profile.enable()
        running = not running

    signal.signal(signal.SIGUSR2, toggle)


if __name__ == "__main__":
    from tailrace.__main__ import main

    profile_between_signals(Path(sys.argv.pop(1)))
    main()
