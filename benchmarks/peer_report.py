"""The section of the report on peers: each beside our rows of the same work."""

from __future__ import annotations

import peers
from peer_rows import COMPARED, Comparison, row_of
from report import Report, spread


def section(report: Report) -> list[str]:
    """Return the tables; empty if no peer was measured."""
    lines = [line for what, comparison in COMPARED.items() for line in _table(report, what, comparison)]
    if not lines:
        return []
    absent = [f"- {name} was not measured: {why}" for name, why in report.missing.items()]
    return [
        "## Beside others",
        "",
        "Each with its own client, in the same rounds. Factors are of the same round; those to transfers of who does "
        "as much, and to plain GETs, are of ours directly before, measured once more; above 1 Tailrace is ahead. *As "
        "much work* is that what is sent has a hash that the other side checks, and that an upload is stored and "
        "synced before the answer; or that something is done that costs more instead.",
        *lines,
        *([""] if absent else []),
        *absent,
    ]


def _table(report: Report, what: str, comparison: Comparison) -> list[str]:
    rows = []
    for peer in peers.PEERS:
        found = report.results.get(row_of(peer, what))
        if found is None:
            continue
        factors = [spread(report.factors(ours, found)) for ours in comparison.ours.values()]
        text = f"{spread([s.value for s in found.samples])} {found.unit}" if found.samples else found.problem
        same = "yes" if what in peer.same_work else "no"
        rows.append(f"| {peer.name} | {text} | {' | '.join(factors)} | {same} | {peer.does_less} |")
    if not rows:
        return []
    heads = ["with", "figure", *(f"ahead over {name}" for name in comparison.ours), "as much work", "it does less"]
    lines = ["", f"### {comparison.title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, ours in comparison.ours.items():
        if ours in report.results:
            mine = report.results[ours]
            text = f"{spread([s.value for s in mine.samples])} {mine.unit}"
            lines.append(f"| **Tailrace, {name}** | {text} |" + " |" * (len(heads) - 2))
    return lines + rows
