"""Records of a file: one in each line, and in which line each was."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import AsyncGenerator
from contextlib import aclosing

from tailrace_common_api import BulkRefused, ProblemKind, Record, RecordProblem, refused_records


class RecordLines:
    """Turns pieces of a file into records. Lines of nothing but white space are left out."""

    def __init__(self, *, key_field: str | None = None) -> None:
        """Take the key of each record from this field of it; ``None`` for records without keys."""
        self._key_field = key_field
        self._records = 0
        # Where lines were left out: index of the next record, and how many there are up to it.
        self._gaps: list[int] = []
        self._left_out: list[int] = []

    def line_of(self, index: int) -> int:
        """Return the line in which a record was, from 1."""
        gap = bisect_right(self._gaps, index)
        return index + 1 + (self._left_out[gap - 1] if gap else 0)

    async def records(self, pieces: AsyncGenerator[bytes, None], *, most: int) -> AsyncGenerator[list[Record], None]:
        """Yield the records as their lines are complete, those of one piece together.

        Args:
            pieces: The file; closed at the end.
            most: Longest line, in bytes, its end apart.

        Raises:
            BulkRefused: A line is longer, or does not have the field of the key.
        """
        begun: list[bytes] = []
        size = 0
        async with aclosing(pieces):
            async for piece in pieces:
                first, newline, rest = piece.partition(b"\n")
                begun.append(first)
                size += len(first)
                if newline:
                    lines = [b"".join(begun), *rest.split(b"\n")]
                    last = lines.pop()
                    begun, size = [last], len(last)
                    if records := self._taken(lines):
                        yield records
                if size > most + 1:  # A carriage return may be among them.
                    raise self._refused(None, f"more than {most} bytes in a line")
        if records := self._taken([b"".join(begun)]):
            yield records

    def _taken(self, lines: list[bytes]) -> list[Record]:
        records = []
        for line in lines:
            if not line or line.isspace():
                self._gaps.append(self._records)
                self._left_out.append(len(self._gaps))
                continue
            data = line[:-1] if line.endswith(b"\r") else line
            records.append(Record(data, None if self._key_field is None else self._key_of(data, self._key_field)))
            self._records += 1
        return records

    def _key_of(self, data: bytes, field: str) -> str:
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            raise self._refused(None, "is not JSON") from None
        key = record.get(field) if isinstance(record, dict) else None
        if isinstance(key, str) and key:
            return key
        if isinstance(key, int) and not isinstance(key, bool):
            return str(key)
        raise self._refused(field, "is no key: it must be text or a whole number")

    def _refused(self, field: str | None, problem: str) -> BulkRefused:
        return refused_line(self._records, field, problem)


def refused_line(index: int, field: str | None, problem: str) -> BulkRefused:
    """Return the error of a bulk that ends with this record, of which no server has heard."""
    return refused_records([RecordProblem(index=index, kind=ProblemKind.INVALID, field=field, problem=problem)], 1)
