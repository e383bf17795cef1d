"""Bytes-like values as they come in: never copied to be looked at."""

from __future__ import annotations

from tailrace_common_api import InvalidArgument

Buffer = bytes | bytearray | memoryview
"""What callers may hand in where bytes are needed."""


def flat(data: object) -> Buffer:
    """Return ``data`` if its length counts bytes, or a view of it whose length does.

    Raises:
        InvalidArgument: ``data`` is no bytes-like object (text, most often), or a memoryview with gaps.
    """
    if isinstance(data, (bytes, bytearray)):
        return data
    if isinstance(data, memoryview):
        if not data.c_contiguous:
            raise InvalidArgument(field="data", problem="a memoryview that is not contiguous")
        return data if data.ndim == 1 and data.format == "B" else data.cast("B")
    if isinstance(data, str):
        problem = "text where bytes are needed; encode it, or open the file in binary mode"
        raise InvalidArgument(field="data", problem=problem)
    raise InvalidArgument(field="data", problem=f"{type(data).__name__} where bytes are needed")
