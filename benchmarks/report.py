"""The report of a run as Markdown: a table for each group of rows, the goals, and the peers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from cases import GIGABYTE, THROUGHPUT, TRANSPORTS, Result, Sample

NOTHING = "–"


@dataclass
class Report:
    """What a run has found."""

    date: str
    machine: str
    libraries: str
    code: str
    arguments: str
    rounds: int
    size: int
    seconds: float
    """How long the run took."""
    load: float
    """Processes that wanted a processor when it began."""
    results: dict[str, Result]
    missing: dict[str, str] = field(default_factory=dict)
    """Why peers were not measured, by name."""
    runs: int = 1
    """How often the suite was run; rounds are numbered on from one run to the next."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Report:
        """Return what :meth:`to_json` gave."""
        results = [Result.from_json(result) for result in fields["results"]]
        return cls(**{**fields, "results": {result.id: result for result in results}})

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "results": [result.to_json() for result in self.results.values()]}

    def to_text(self) -> str:
        """Return JSON with a line for each sample."""
        fields = self.to_json()
        results = []
        for result in fields.pop("results"):
            samples = ",\n".join(f"   {json.dumps(sample)}" for sample in result.pop("samples"))
            results.append(f'  {json.dumps(result)[:-1]}, "samples": [\n{samples}\n  ]}}')
        return json.dumps(fields, indent=1)[:-2] + ',\n "results": [\n' + ",\n".join(results) + "\n ]\n}\n"

    def each_run(self) -> list[Report]:
        """Return a report of each run by itself."""
        return [self] if self.runs == 1 else [self._run(number) for number in range(self.runs)]

    def _run(self, number: int) -> Report:
        results = {
            name: replace(
                result, samples=[sample for sample in result.samples if sample.round // self.rounds == number]
            )
            for name, result in self.results.items()
        }
        return replace(self, results=results, runs=1)

    def values(self, id: str) -> dict[int, float]:
        """Return the values of a row by round."""
        result = self.results.get(id)
        return {} if result is None else {sample.round: sample.value for sample in result.samples}

    def ratios_to(self, id: str, limits: Iterable[str]) -> list[float]:
        """Return the ratios of a row to the least of other rows, each of the same round."""
        found = [self.values(limit) for limit in limits]
        return [
            value / min(limit[number] for limit in found)
            for number, value in self.values(id).items()
            if found and all(number in limit for limit in found)
        ]

    def shares(self, id: str) -> list[float]:
        """Return the ratios of a row to its floor: to that directly before each measurement, or of the same round."""
        result = self.results.get(id)
        if result is None or result.floor is None:
            return []
        floors = self.values(result.floor)
        pairs = [(sample.value, sample.floor or floors.get(sample.round)) for sample in result.samples]
        return [value / floor for value, floor in pairs if floor]

    def factors(self, id: str, other: Result) -> list[float]:
        """Return how far a row is ahead of another one, directly before that or in the same round: above 1 it is."""
        values = self.values(id)
        pairs = [(sample.beside.get(id) or values.get(sample.round), sample.value) for sample in other.samples]
        return [theirs / ours if other.lower_is_better else ours / theirs for ours, theirs in pairs if ours]

    def ratios_to_raw(self, id: str) -> list[float]:
        """Return the ratios of a row in GB/s to the raw socket directly before each measurement."""
        result = self.results.get(id)
        if result is None or result.unit != THROUGHPUT:
            return []
        return [sample.value / sample.raw for sample in result.samples if sample.raw]


def figure(value: float) -> str:
    """Return a number with three digits that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def spread(values: list[float]) -> str:
    """Return median, minimum and maximum."""
    if not values:
        return NOTHING
    if len(values) == 1:
        return figure(values[0])
    return f"{figure(statistics.median(values))} ({figure(min(values))}–{figure(max(values))})"


def median_of(result: Result, take: Callable[[Sample], float]) -> float | None:
    """Return the median of something over the samples; ``None`` if there is none."""
    return statistics.median([take(sample) for sample in result.samples]) if result.samples else None


def _processor(result: Result, side: str) -> str:
    """Return the processor time of a side: in s/GB for bytes, else in microseconds for each thing that was done."""

    def share(sample: Sample) -> float:
        used: float = getattr(sample, f"{side}_cpu")
        return used / (sample.bytes / GIGABYTE) if sample.bytes else used / sample.count * 1e6 if sample.count else 0.0

    found = median_of(result, share)
    if not found:
        return NOTHING
    return f"{figure(found)} s/GB" if result.samples[0].bytes else f"{figure(found)} µs"


def _peaks(result: Result) -> str:
    server, client = (max(getattr(s, f"{side}_peak") for s in result.samples) >> 20 for side in ("server", "client"))
    return f"{server or NOTHING} / {client or NOTHING}"


def _more(result: Result) -> str:
    names = dict.fromkeys(name for sample in result.samples for name in sample.more)
    texts = []
    for name in names:
        values = [sample.more[name] for sample in result.samples if name in sample.more]
        what, _, unit = name.rpartition("_")
        texts.append(f"{what.replace('_', ' ')} {figure(statistics.median(values))} {unit}")
    return ", ".join(texts)


def _trouble(result: Result) -> str:
    """Return what did not go as it should, to stand behind the rest."""
    again = f"; measured again {result.voids} times" if result.voids else ""
    return again + (f"; FAILED: {result.problem}" if result.problem else "")


def table(report: Report, results: list[Result]) -> list[str]:
    """Return the table of a group."""
    lines = [
        "| row | median (min–max) | to raw | to floor | server CPU | client CPU | peak MiB, server / client | more |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if not result.samples:
            lines.append(f"| {result.title} | not measured: {result.problem} | | | | | | |")
            continue
        values = [sample.value for sample in result.samples]
        cells = [
            result.title,
            f"{spread(values)} {result.unit}",
            spread(report.ratios_to_raw(result.id)) if result.id != "raw.socket" else NOTHING,
            spread(report.shares(result.id)),
            _processor(result, "server"),
            _processor(result, "client"),
            _peaks(result),
            _more(result) + _trouble(result),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


_MAIN = {
    "upload": "upload, new file, synced at the end",
    "upload_warm": "upload, warm file",
    "download": "download",
    "follow": "follow while uploading",
    "lines": "lines of 100 bytes, a write each",
    "latency": "write of a line to its arrival, median",
}


def main_table(report: Report) -> list[str]:
    """Return the table of the rows that matter most, with both transports side by side."""
    lines = ["| | gRPC | WebSocket |", "|---|---|---|"]
    for name, title in _MAIN.items():
        cells = []
        for transport in TRANSPORTS:
            result = report.results.get(f"{transport}.{name}")
            if result is None or not result.samples:
                break
            cell = f"{figure(statistics.median([sample.value for sample in result.samples]))} {result.unit}"
            details = []
            if late := [sample.more["p99_ms"] for sample in result.samples if "p99_ms" in sample.more]:
                details.append(f"p99 {figure(statistics.median(late))} ms")
            if ratios := report.ratios_to_raw(result.id):
                share = f"{figure(statistics.median(ratios))} of raw"
                if shares := report.shares(result.id):
                    share += f", {figure(statistics.median(shares))} of by hand"
                details.append(share)
                details.append(f"{_processor(result, 'server')} + {_processor(result, 'client')}")
            cells.append(f"{cell} ({'; '.join(details)})" if details else cell)
        if len(cells) == len(TRANSPORTS):
            lines.append(f"| {title} | {cells[0]} | {cells[1]} |")
    if len(lines) == 2:
        return []
    note = (
        "Ratios are to a raw blocking loopback socket directly before, and to blocking sockets that do the same work "
        "by hand; processor time is that of server + client."
    )
    return ["## In short", "", *lines, "", note]


def head(report: Report) -> list[str]:
    """Return what the figures stand on."""
    again = f" in each of {report.runs} runs of the suite, one after the other" if report.runs > 1 else ""
    return [
        f"Made by `{report.arguments}` on {report.date}, in {report.seconds / 60:.1f} minutes, of {report.code}.",
        "",
        f"Machine: {report.machine}; {report.libraries}; load when it began: {report.load:.1f}.",
        "",
        f"Medians (minimum–maximum) of up to {report.rounds} rounds{again}; transfers of {report.size >> 20} MiB. "
        "Directly before each measurement a blocking socket between two processes moves data in messages of 1 MiB; *to "
        "raw* is the ratio to that. *To floor* is the ratio to blocking sockets that do the same work by hand, also "
        "directly before. Processor time is per gigabyte, or for each thing that was done. Peaks are of the resident "
        "memory, with what earlier rows left in it.",
    ]


def render(report: Report, sections: Iterable[list[str]] = ()) -> str:
    """Return the report; ``sections`` come behind the tables."""
    lines = ["# Results", "", *head(report)]
    if short := main_table(report):
        lines += ["", *short]
    groups: dict[str, list[Result]] = {}
    for result in report.results.values():
        groups.setdefault(result.group, []).append(result)
    for group, results in groups.items():
        lines += ["", f"## {group}", "", *table(report, results)]
    for section in sections:
        if section:
            lines += ["", *section]
    return "\n".join(lines) + "\n"
