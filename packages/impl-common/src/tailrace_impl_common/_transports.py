"""What transports of event loops do with what is written to them."""

from __future__ import annotations

import asyncio
import sys


def sends_lists(transport: asyncio.BaseTransport, version: tuple[int, ...] = sys.version_info[:3]) -> bool:
    """Return whether a transport sends a list of buffers without joining them, and says when it has enough.

    Those of uvloop do, with TLS and without. asyncio's join up to 3.11. After that they do not, but up to 3.12.8 and
    3.13.1 they never pause who writes lists (CVE-2024-12254).

    Args:
        transport: Of any event loop.
        version: Of the interpreter, whose standard library asyncio is part of.
    """
    if not type(transport).__module__.startswith("asyncio."):
        return True
    return (3, 12, 9) <= version < (3, 13) or version >= (3, 13, 2)
