"""Standard input, output and error, whatever the process was started with."""

from __future__ import annotations

import io
import os
import sys


def fill_closed_streams() -> None:
    """Occupy the standard descriptors that are closed, so that no file or connection gets their numbers.

    Whatever is opened later would otherwise become standard output, and event loops refuse to close such a descriptor.
    Reading from a closed standard input and writing to a closed standard output stay errors; what is said on a closed
    standard error is lost.
    """
    # The other way round for input and output: each then fails as if it were still closed.
    for descriptor, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number, which is this one: those below are open by now.
            os.open(os.devnull, flags)
    # Python has no objects for what was closed at its start.
    sys.stdin = sys.stdin or os.fdopen(0, "r", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def write_any_text() -> None:
    """Let what the encoding of the terminal does not have come out as an escape, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
