"""The `tailrace` command."""

import sys

from tailrace._malloc import tune_malloc


def main() -> None:
    """Run the command that the process was started with, and exit with its code."""
    # Before anything large is allocated.
    tune_malloc()
    from tailrace._command import run

    sys.exit(run())


if __name__ == "__main__":
    main()
