"""Lines out of pieces of a byte stream."""

from __future__ import annotations

from io import BytesIO

Buffer = bytes | bytearray | memoryview


class LineSplitter:
    """Cuts a byte stream into lines at newlines (not carriage returns), which stay; holds one incomplete line."""

    def __init__(self) -> None:
        self._incomplete: list[bytes] = []

    def feed(self, data: Buffer) -> list[bytes]:
        """Take the next bytes and return the lines that they complete."""
        # The one splitter of the standard library that ends lines at "\n" alone and keeps terminators.
        lines = BytesIO(data).readlines()
        if not lines:
            return lines
        if self._incomplete:
            self._incomplete.append(lines[0])
            if not lines[0].endswith(b"\n"):
                return []
            lines[0] = b"".join(self._incomplete)
            self._incomplete.clear()
        if not lines[-1].endswith(b"\n"):
            self._incomplete.append(lines.pop())
        return lines

    def rest(self) -> list[bytes]:
        """Return the line that has no terminator, if there is one; called at the end of the stream."""
        lines = [b"".join(self._incomplete)] if self._incomplete else []
        self._incomplete.clear()
        return lines
