"""Sources that settings of the tests name."""

from __future__ import annotations

from collections.abc import AsyncGenerator


async def counted(count: int, text: str = "t") -> AsyncGenerator[dict[str, object], None]:
    for number in range(count):
        yield {"number": number, "text": text}


async def unannotated(count) -> AsyncGenerator[bytes, None]:  # type: ignore[no-untyped-def]  # no annotation is the test
    yield b""
