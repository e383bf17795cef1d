"""Sources of records that servers of the tests have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator


async def ticks(count: int = 1_000_000_000) -> AsyncGenerator[dict[str, object], None]:
    """Yield records for as long as somebody reads, each a little later."""
    for number in range(count):
        yield {"tick": number}
        await asyncio.sleep(0.01)


async def failing() -> AsyncGenerator[dict[str, object], None]:
    """Yield two records, and fail."""
    for number in range(2):
        yield {"n": number}
    raise LookupError("the third one is missing")
