"""PROTOCOL.md, read: its sections, tables and code blocks, and the values of its examples."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

from tailrace_common_api import Checkpoint
from tailrace_impl_common import chunk_hash, head_of
from tailrace_impl_common.messages import Chunk

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "PROTOCOL.md").read_text()

Row = dict[str, str]

FIRST, SECOND = b"compiling\n", b"linking\n"
FIRST_CHUNK = Chunk(0, FIRST, chunk_hash(FIRST), b"")
SECOND_CHUNK = Chunk(len(FIRST), SECOND, chunk_hash(SECOND), chunk_hash(FIRST))
SECOND_CHUNK_READ = SECOND_CHUNK._replace(checkpoint=Checkpoint(18, 2, head_of(FIRST + SECOND)))


def section(number: str) -> str:
    """Return a section with its subsections, by the number in its heading."""
    depth = "#" * (2 + number.count("."))
    found = re.search(rf"^{depth} {re.escape(number)}\.? .*?(?=^#{{2,{len(depth)}}} |\Z)", DOCUMENT, re.M | re.S)
    assert found, number
    return found[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> list[list[Row]]:
    """Return the tables of a text; each row by the names of its columns."""
    found: list[list[Row]] = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, _, *rows = block.splitlines()
        names = cells(header)
        found.append([dict(zip(names, cells(row), strict=True)) for row in rows])
    return found


def table(number: str, first_column: str) -> list[Row]:
    """Return the one table of a section whose first column has this name."""
    found = [rows for rows in tables(section(number)) if next(iter(rows[0])) == first_column]
    assert len(found) == 1, (number, first_column)
    return found[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def from_hex(block: str) -> bytes:
    """Return the bytes of an annotated dump: what stands behind two spaces or more within a line is annotation."""
    return bytes.fromhex("".join(re.split(r"(?<=\S) {2,}", line.strip())[0] for line in block.splitlines()))


def optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def prose(number: str) -> str:
    """Return a section as one line, so that the breaks of its lines do not matter."""
    return " ".join(section(number).split())
