"""What every client sends, and how it is proved that it arrived."""

from __future__ import annotations

import os
from collections.abc import Iterator

MEBIBYTE = 1024 * 1024

DATA = os.urandom(MEBIBYTE)
"""1 MiB that does not compress, made before anything is timed; every upload of this process repeats it."""

LINE = b"x" * 99 + b"\n"


def pieces(size: int) -> Iterator[bytes]:
    """Yield what an upload of ``size`` bytes sends, in pieces of 1 MiB."""
    for _ in range(size // MEBIBYTE):
        yield DATA


class Content:
    """Compares what arrives, in pieces of any length, with what was sent."""

    def __init__(self, unit: bytes = DATA) -> None:
        """Expect repetitions of ``unit``."""
        self._unit = unit
        self.received = 0

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """Compare the next piece; raise `AssertionError` where it differs."""
        view = memoryview(piece).cast("B")
        while view:
            begin = self.received % len(self._unit)
            part = min(len(view), len(self._unit) - begin)
            if view[:part] != memoryview(self._unit)[begin : begin + part]:
                raise AssertionError(
                    f"other bytes than those sent arrived at {self.received} to {self.received + part}"
                )
            self.received += part
            view = view[part:]

    def end(self, size: int) -> None:
        """Raise `AssertionError` unless ``size`` bytes have been compared."""
        expect(self.received, size)


def expect(received: int, size: int) -> None:
    """Raise `AssertionError` unless everything arrived."""
    if received != size:
        raise AssertionError(f"{received} bytes of {size} arrived")
