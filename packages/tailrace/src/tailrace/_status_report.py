"""A status, for programs and for people."""

from __future__ import annotations

import json
from datetime import datetime

from tailrace._messages import printable
from tailrace_common_api import Status


def status_fields(status: Status) -> dict[str, object]:
    """Return a status as the JSON object that the command line prints."""
    metadata = status.metadata
    return {
        "reference": status.reference,
        "id": status.id,
        "version": status.version,
        "state": status.state.value,
        "size": status.size,
        "lines": status.lines,
        "head": status.head.hex(),
        "reason": status.reason,
        "alternatives": list(status.alternatives),
        "metadata": {
            "name": metadata.name,
            "content_type": metadata.content_type,
            "lines": metadata.lines,
            "labels": dict(metadata.labels),
            "context": metadata.context,
        },
        "visibility": status.visibility.value,
        "created_at": status.created_at,
    }


def json_line(value: object) -> str:
    """Return JSON in one line, without its end."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def status_text(status: Status) -> str:
    """Return a status as a few lines for people."""
    metadata = status.metadata
    rows = {
        "reference": status.reference,
        "name": metadata.name,
        "content type": metadata.content_type,
        "state": f"{status.state.value}, version {status.version}",
        "reason": status.reason,
        "size": f"{status.size:,} bytes",
        "lines": None if status.lines is None else f"{status.lines:,}",
        "head": status.head.hex(),
        "labels": ", ".join(f"{key}={value}" for key, value in sorted(metadata.labels.items())) or None,
        "context": metadata.context,
        "created": datetime.fromtimestamp(status.created_at).astimezone().isoformat(timespec="seconds"),
        "also at": " ".join(item for item in status.alternatives if item != status.reference) or None,
    }
    return "\n".join(f"{name + ':':14}{printable(value)}" for name, value in rows.items() if value is not None)


def status_row(status: Status, name: str = "") -> str:
    """Return a status as one line for people, with a name for the resource where one is given."""
    lines = "" if status.lines is None else f"{status.lines:,} lines"
    reason = "" if status.reason is None else f"  {printable(status.reason)}"
    called = name and f"  {name}"
    return f"{status.state.value:<11}  {status.size:>15,} bytes  {lines:>17}{called}{reason}"
