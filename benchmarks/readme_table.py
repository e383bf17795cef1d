"""Put the main table of the recorded run into the README, between its two marks.

python benchmarks/readme_table.py            write it
python benchmarks/readme_table.py --check    end with 1 unless the README has it
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import peers
from cases import TITLES
from peer_rows import COMPARED, row_of
from report import NOTHING, Report, figure, main_table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RECORDED = HERE / "RESULTS.json"
"""The numbers of the run that RESULTS.md tells of."""
BEGIN, END = "<!-- made by benchmarks/readme_table.py -->\n", "<!-- until here -->\n"
_COLUMNS = ("upload", "download", "follow", "lines", "latencies")


def _median(report: Report, id: str) -> str:
    values = list(report.values(id).values())
    return figure(statistics.median(values)) if values else NOTHING


def beside_others(report: Report) -> list[str]:
    """Return a table of what peers reach in the same run, each by its own client; empty if none was measured."""
    rows = [
        [f"**Tailrace**, {name}", *(_median(report, COMPARED[what].ours[name]) for what in _COLUMNS), "", ""]
        for name in TITLES.values()
    ]
    for peer in peers.PEERS:
        figures = [_median(report, row_of(peer, what)) for what in _COLUMNS]
        if any(text != NOTHING for text in figures):
            same = ", ".join(what for what in _COLUMNS if what in peer.same_work)
            rows.append([peer.name, *figures, same, peer.does_less])
    if len(rows) == len(TITLES):
        return []
    heads = ["", *(COMPARED[what].short for what in _COLUMNS), "does as much at", "does less"]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def text_of(report: Report) -> str:
    """Return what stands between the marks."""
    # The heading is the README's.
    table = main_table(report)[2:]
    lines = [*table, "", *beside_others(report), ""]
    lines += [
        f"Medians of `{report.arguments}` on {report.date}, {report.machine}.",
        "All rows, their spreads and what each means: [RESULTS.md](benchmarks/RESULTS.md) and",
        "[benchmarks/README.md](benchmarks/README.md); what was learned: [NOTES.md](benchmarks/NOTES.md).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README.name} lacks the marks {BEGIN.strip()} and {END.strip()}")
    wanted = before + begin + text_of(Report.from_json(json.loads(RECORDED.read_text()))) + end + after
    if arguments.check:
        if README.read_text() != wanted:
            raise SystemExit(
                f"the table in {README.name} is not that of the recorded run: {Path(__file__).name} writes it"
            )
        return
    README.write_text(wanted)


if __name__ == "__main__":
    main()
