"""The section of the report on peers: each beside our rows of the same work."""

from __future__ import annotations

from collections.abc import Mapping

from cases import TRANSPORTS, Result
from peer_rows import COMPARED
from report import Report, spread

_SECTIONS = {
    "upload": "Upload, new file",
    "download": "Download",
    "follow": "Follow while uploading",
    "lines": "Lines of 100 bytes, a write each",
    "latencies": "Write of a line to its arrival, median",
}


def section(report: Report, notes: Mapping[str, str], missing: Mapping[str, str]) -> list[str]:
    """Return the tables; empty if no peer was measured.

    Args:
        report: What was measured.
        notes: What each peer does less, by the name in its ids.
        missing: Why peers were not measured, by name.
    """
    lines: list[str] = []
    for what, (_, ours) in COMPARED.items():
        rows = report.results.values()
        found = [row for row in rows if row.id.startswith("peer.") and row.id.endswith(f".{what}")]
        if found:
            lines += _table(report, what, ours, found, notes)
    if not lines:
        return []
    absent = [f"- {name} was not measured: {why}" for name, why in missing.items()]
    return [
        "## Beside others",
        "",
        "Each with its own client, in the same rounds. Factors are of the same round; above 1 Tailrace is ahead.",
        *lines,
        *([""] if absent else []),
        *absent,
    ]


def _table(report: Report, what: str, ours: str, found: list[Result], notes: Mapping[str, str]) -> list[str]:
    lines = [
        "",
        f"### {_SECTIONS[what]}",
        "",
        "| with | figure | ahead over gRPC | ahead over WebSocket | does less |",
        "|---|---|---|---|---|",
    ]
    for transport in TRANSPORTS:
        mine = report.results.get(f"{transport}.{ours}")
        if mine is not None:
            name = "gRPC" if transport == "grpc" else "WebSocket"
            lines.append(f"| **Tailrace, {name}** | {spread([s.value for s in mine.samples])} {mine.unit} | | | |")
    for result in found:
        _, peer, _ = result.id.split(".")
        factors = []
        for transport in TRANSPORTS:
            pair = (f"{transport}.{ours}", result.id)
            row, limit = reversed(pair) if result.lower_is_better else pair
            factors.append(spread(report.ratios_to(row, [limit])))
        text = f"{spread([s.value for s in result.samples])} {result.unit}" if result.samples else result.problem
        lines.append(
            f"| {result.title.rpartition(':')[0]} | {text} | {factors[0]} | {factors[1]} | {notes.get(peer, '')} |"
        )
    return lines
