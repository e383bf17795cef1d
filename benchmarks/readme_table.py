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
from peer_rows import COMPARED, slug
from report import NOTHING, Report, figure, main_table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RECORDED = HERE / "RESULTS.json"
"""The numbers of the run that RESULTS.md tells of."""
BEGIN, END = "<!-- made by benchmarks/readme_table.py -->\n", "<!-- until here -->\n"
_HEADINGS = {
    "upload": "upload, GB/s",
    "download": "download, GB/s",
    "follow": "follow, GB/s",
    "lines": "lines, thousand/s",
    "latencies": "line to reader, ms",
}


def _median(report: Report, id: str) -> str:
    values = list(report.values(id).values())
    return figure(statistics.median(values)) if values else NOTHING


def beside_others(report: Report) -> list[str]:
    """Return a table of what peers reach in the same run, each by its own client; empty if none was measured."""
    rows = []
    for transport, name in (("grpc", "**Tailrace**, gRPC"), ("ws", "**Tailrace**, WebSocket")):
        rows.append([name, *(_median(report, f"{transport}.{ours}") for _, ours in COMPARED.values()), ""])
    for peer in peers.PEERS:
        figures = [_median(report, f"peer.{slug(peer.name)}.{what}") for what in COMPARED]
        if any(text != NOTHING for text in figures):
            rows.append([peer.name, *figures, peer.does_less])
    if len(rows) == 2:
        return []
    heads = ["", *(_HEADINGS[what] for what in COMPARED), "does less"]
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
