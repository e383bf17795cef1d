"""What every client sends, and how it is proved that it arrived."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import cache

from xxhash import xxh3_128

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


@cache
def hash_of(size: int, first: bytes = DATA) -> bytes:
    """Return the XXH3-128 of an upload of ``size`` bytes whose first piece is another one than all that follow."""
    hasher = xxh3_128()
    for piece in [first, *pieces(size - len(first))]:
        hasher.update(piece)
    return hasher.digest()


def timed_download(
    receive: Callable[[Callable[[bytes | memoryview], object]], object], size: int, digest: bytes | None
) -> float:
    """Return how long it takes to receive and, with the hash of what was sent, to check everything."""
    received = 0
    hasher = xxh3_128()

    def count(data: bytes | memoryview) -> None:
        nonlocal received
        received += len(data)

    def check(data: bytes | memoryview) -> None:
        nonlocal received
        received += len(data)
        hasher.update(data)

    begin = time.perf_counter()
    receive(count if digest is None else check)
    if digest is not None and hasher.digest() != digest:
        raise AssertionError("other bytes than those sent arrived")
    seconds = time.perf_counter() - begin
    expect(received, size)
    return seconds


def expect(received: int, size: int) -> None:
    """Raise `AssertionError` unless everything arrived."""
    if received != size:
        raise AssertionError(f"{received} bytes of {size} arrived")
