"""What a file name says about the content."""

from __future__ import annotations

import mimetypes
from pathlib import PurePath

UNKNOWN = "application/octet-stream"

# Before the tables of the system, which know these not at all or differ from one system to the next.
_BY_SUFFIX = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".out": "text/plain",
    ".toml": "application/toml",
    ".txt": "text/plain",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
_BY_ENCODING = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}
_LINE_TYPES = frozenset(
    {"application/json", "application/jsonl", "application/x-ndjson", "application/toml", "application/yaml"}
)


def guess_content_type(name: str) -> str:
    """Return the media type that a file name suggests; that of unknown bytes when it suggests none."""
    known = _BY_SUFFIX.get(PurePath(name).suffix.lower())
    if known is not None:
        return known
    guessed, encoding = mimetypes.guess_type(name, strict=False)
    if encoding is not None:
        # The bytes are those of the compression, whatever is inside.
        return _BY_ENCODING.get(encoding, UNKNOWN)
    return guessed or UNKNOWN


def has_lines(content_type: str) -> bool:
    """Return whether a media type is text that is worth reading by lines: ``text/*``, JSON and the like."""
    base = content_type.partition(";")[0].strip().lower()
    return base.startswith("text/") or base in _LINE_TYPES or base.endswith("+json")
