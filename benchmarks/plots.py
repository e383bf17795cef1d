"""Draw the results of a run, and show the plots in its report: `plots.py [RESULTS.json] [FOLDER]`.

Needs matplotlib, which is in an environment of its own; see `make bench`.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl
from cases import DOWNLOAD, LATENCY, LIMITS, LINES, PEERS, RECORDS, SETTINGS, THROUGHPUT, UPLOAD, Result
from report import Report

mpl.use("agg")
from matplotlib import pyplot  # the backend comes first

RESULTS = Path(__file__).parent / "results"
_HEADING = "## Plots"
_COLOURS = {"grpc": "#1b6ca8", "ws": "#d9822b", "peer": "#999999"}


def _colour(result: Result) -> str:
    return _COLOURS.get(result.id.partition(".")[0], "#555555")


def bars(results: list[Result], title: str, path: Path) -> None:
    """Draw the medians of rows of one unit, with their minimum and maximum."""
    results = list(reversed(results))
    medians = [statistics.median([sample.value for sample in result.samples]) for result in results]
    low = [middle - min(s.value for s in result.samples) for middle, result in zip(medians, results, strict=True)]
    high = [max(s.value for s in result.samples) - middle for middle, result in zip(medians, results, strict=True)]
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.32 * len(results)))
    names = [result.title for result in results]
    axes.barh(names, medians, xerr=[low, high], color=[_colour(result) for result in results], ecolor="#333333")
    axes.set(xlabel=results[0].unit, title=title)
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def processor(results: list[Result], path: Path) -> None:
    """Draw the processor time of both sides per gigabyte."""
    results = [result for result in reversed(results) if result.samples[0].bytes]
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.32 * len(results)))
    names = [result.title for result in results]
    sides = {}
    for side in ("server", "client"):
        sides[side] = [
            statistics.median([getattr(s, f"{side}_cpu") / s.bytes * 1e9 for s in result.samples]) for result in results
        ]
    axes.barh(names, sides["server"], color="#1b6ca8", label="server")
    axes.barh(names, sides["client"], left=sides["server"], color="#8fc1e3", label="client")
    axes.set(xlabel="processor seconds per GB", title="Processor time")
    axes.legend()
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw what there is; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = [result for result in report.results.values() if result.samples]
    drawn = []

    def pick(unit: str, *groups: str) -> list[Result]:
        return [result for result in measured if result.unit == unit and result.group in groups]

    plots = {
        "transfers": ("Transfers", pick(THROUGHPUT, LIMITS, UPLOAD, DOWNLOAD)),
        "lines": ("Lines of 100 bytes", pick("thousand/s", LINES, PEERS + LINES)),
        "latency": ("Write of a line to its arrival, median", pick("ms", LATENCY, PEERS + LATENCY)),
        "settings": ("What settings cost", pick(THROUGHPUT, SETTINGS)),
        "records": ("Records", pick("thousand/s", RECORDS)),
        "work": ("Deliveries of work", pick("deliveries/s", RECORDS)),
    }
    named = [result for result in measured if result.id in ("grpc.upload", "ws.upload", "grpc.follow", "ws.follow")]
    named += [result for result in measured if result.id in ("grpc.download", "ws.download")]
    for what in ("upload", "download", "follow"):
        peers = [result for result in measured if result.id.startswith("peer.") and result.id.endswith(f".{what}")]
        if peers:
            ours = [result for result in named if result.id.endswith(f".{what}")]
            plots[f"peers-{what}"] = (f"Beside others: {what}", ours + peers)
    for name, (title, results) in plots.items():
        if results:
            bars(results, title, folder / f"{name}.svg")
            drawn.append(folder / f"{name}.svg")
    transfers = [result for result in measured if result.group in (UPLOAD, DOWNLOAD)]
    if transfers:
        processor(transfers, folder / "processor.svg")
        drawn.append(folder / "processor.svg")
    return drawn


def main() -> None:
    """Draw what the command line names."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "latest.json"
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else source.parent / "plots"
    drawn = draw(Report.from_json(json.loads(source.read_text())), folder)
    text = source.with_suffix(".md")
    if text.exists():
        lines = [f"![{path.stem}]({folder.name}/{path.name})" for path in drawn]
        whole, _, _ = text.read_text().partition(f"\n{_HEADING}\n")
        text.write_text("\n".join([whole, _HEADING, "", *lines, ""]))
    print("\n".join(map(str, drawn)))


if __name__ == "__main__":
    main()
