"""The `tailrace` command."""

import sys

from tailrace._collector import tune_collector
from tailrace._grpc_core import tune_grpc
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
    tune_grpc()
    from tailrace._command import run

    code = run()
    HANDLER.uninstall()
    sys.exit(code)


if __name__ == "__main__":
    main()
