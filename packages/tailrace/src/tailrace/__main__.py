"""The `tailrace` command."""

import os
import sys

from tailrace._collector import tune_collector
from tailrace._malloc import tune_malloc
from tailrace._signals import HANDLER
from tailrace._standard_streams import fill_closed_streams, write_any_text


def main() -> None:
    """Run the command that the process was started with, and exit with its code."""
    # Nobody is told of an interruption by the lines where it happened.
    HANDLER.install()
    # Before anything is opened.
    fill_closed_streams()
    write_any_text()
    # Before anything large is allocated.
    tune_malloc()
    tune_collector()
    # What fails is said once, by this program; the library below gRPC would say it, too, in its own words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tailrace._command import run

    code = run()
    HANDLER.uninstall()
    sys.exit(code)


if __name__ == "__main__":
    main()
