"""Several runs of the benchmarks are told of together, each by itself where it matters, and what arrives is checked."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def _report(rows: dict[str, list[float]], *, raw: float = 10.0, **fields: Any) -> Any:
    """Return the report of a run with these values of rows, one for each round."""
    from cases import Result, Sample
    from report import Report

    results = {
        name: Result(
            name,
            name,
            "Group",
            "GB/s",
            False,
            None,
            [Sample(value, bytes=1 << 20, round=number, raw=raw) for number, value in enumerate(values)],
        )
        for name, values in rows.items()
    }
    settings: dict[str, Any] = {
        "date": "2026-11-21 12:00",
        "machine": "a machine",
        "libraries": "libraries",
        "code": "abc",
        "arguments": "run.py",
        "rounds": 3,
        "size": 1 << 20,
        "seconds": 60.0,
        "load": 1.0,
    }
    return Report(**{**settings, **fields}, results=results)


def _goal(report: Any, what: str) -> list[str]:
    from goals import section

    [row] = [line for line in section(report) if line.startswith(f"| {what} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_goal_is_met_if_every_run_meets_it_by_itself() -> None:
    from runs import together

    runs = [_report({"ws.upload_warm": [value] * 3}) for value in (4.6, 4.4, 7.0)]
    what = "WebSocket upload to a warm file, to raw"
    assert _goal(together(runs), what)[1:6] == [
        "0.46; 0.44; 0.70",
        "≥ 0.45",
        "**missed**, met 2 of 3 times",
        "≥ 0.65",
        "missed, met 1 of 3 times",
    ]
    assert _goal(together([runs[0], runs[2]]), what)[3] == "met"
    assert _goal(runs[1], what)[1:4] == ["0.44", "≥ 0.45", "**missed**"]


def test_ratios_are_of_the_rounds_of_one_run_also_where_one_has_fewer() -> None:
    from runs import together

    first = _report({"grpc.upload_warm": [1.0, 2.0], "floor.upload_warm": [2.0, 4.0, 4.0]})
    second = _report({"grpc.upload_warm": [3.0, 3.0, 3.0], "floor.upload_warm": [12.0, 12.0, 12.0]})
    whole = together([first, second])
    assert whole.ratios_to("grpc.upload_warm", ["floor.upload_warm"]) == [0.5, 0.5, 0.25, 0.25, 0.25]
    assert [run.values("grpc.upload_warm") for run in whole.each_run()] == [{0: 1.0, 1: 2.0}, {3: 3.0, 4: 3.0, 5: 3.0}]


def test_a_row_is_compared_with_what_was_measured_directly_before_it() -> None:
    report = _report({"ws.download": [4.0, 4.0, 4.0], "peer.other.download": [8.0, 2.0, 4.0]})
    other = report.results["peer.other.download"]
    assert report.factors("ws.download", other) == [0.5, 2.0, 1.0]
    other.samples[0].beside = {"ws.download": 6.0}
    assert report.factors("ws.download", other) == [0.75, 2.0, 1.0]
    other.lower_is_better = True
    assert report.factors("ws.download", other) == [8 / 6, 0.5, 1.0]
    assert report.factors("grpc.download", other) == []
    assert type(report).from_json(json.loads(report.to_text())).results["peer.other.download"].samples == other.samples


def test_the_share_of_what_is_reached_by_hand_is_that_directly_before_or_else_of_the_same_round() -> None:
    report = _report({"ws.download": [3.0, 3.0, 3.0], "floor.download": [4.0, 4.0, 4.0]})
    row = report.results["ws.download"]
    row.floor = "floor.download"
    assert report.shares("ws.download") == [0.75, 0.75, 0.75]
    row.samples[1].floor = 6.0
    assert report.shares("ws.download") == [0.75, 0.5, 0.75]
    assert report.shares("floor.download") == report.shares("nothing") == []


def test_a_row_that_one_run_lacks_is_told_of_the_others() -> None:
    from runs import together

    with_row, without = _report({"ws.upload_warm": [5.0]}), _report({"ws.download": [5.0]})
    whole = together([without, with_row])
    assert _goal(whole, "WebSocket upload to a warm file, to raw")[1] == "0.50"
    assert _goal(whole, "WebSocket download, to raw")[1] == "0.50"


def test_runs_of_other_sizes_are_not_put_together() -> None:
    from runs import together

    for other in (_report({}, size=2), _report({}, rounds=5)):
        with pytest.raises(ValueError, match="only runs with the same"):
            together([_report({}), other])


def test_further_runs_are_added_to_the_report_of_several() -> None:
    from runs import together

    values = ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    first, second, third = (_report({"ws.upload": list(run)}, rounds=2) for run in values)
    second.date, third.date = "2026-11-21 12:30", "2026-11-22 13:00"
    second.results["ws.upload"].voids, second.results["ws.upload"].problem = 2, "TimeoutError"
    whole = together([together([first, second]), third])
    assert whole == together([first, second, third])
    assert (whole.runs, whole.seconds, whole.date) == (3, 180.0, "2026-11-21 12:00 to 2026-11-22 13:00")
    assert (whole.results["ws.upload"].voids, whole.results["ws.upload"].problem) == (2, "TimeoutError")
    assert [list(run.values("ws.upload").values()) for run in whole.each_run()] == [list(run) for run in values]
    turned = together([third, together([first, second])])
    assert turned.date == "2026-11-22 13:00 to 2026-11-21 12:30"
    assert turned.values("ws.upload") == dict(enumerate([5.0, 6.0, 1.0, 2.0, 3.0, 4.0]))


def test_problems_codes_and_peers_that_were_missing_are_those_of_all_runs() -> None:
    from runs import together

    first, second = _report({"ws.download": [1.0]}, missing={"nginx": "not there"}), _report({"ws.download": [2.0]})
    second.code, second.libraries = "def", "others"
    second.results["ws.download"].problem = "TimeoutError"
    whole = together([first, second])
    assert (whole.code, whole.seconds, whole.missing) == ("abc and def", 120.0, {"nginx": "not there"})
    assert whole.libraries == "libraries and others"
    assert whole.results["ws.download"].problem == "TimeoutError"


def _case_of(samples: list[Any]) -> Any:
    """Return a row that gives these one after the other; an exception is raised."""
    from cases import Case

    def measure(_: Any) -> Any:
        found = samples.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return Case("row", "row", "Latency", "ms", measure)


def test_a_void_sample_is_measured_again_and_counted_in_the_report(tmp_path: Path) -> None:
    from cases import FULL, Run, Sample, VoidSampleError
    from report import table
    from run import measure_valid
    from runs import together

    left = Sample(3.0)
    samples = [VoidSampleError("too slow"), VoidSampleError("too slow"), Sample(2.0), left]
    case = _case_of(samples)
    report = _report({"row": []})
    result = report.results["row"]
    with Run(replace(FULL, prepared=False), tmp_path) as run:
        result.samples.append(measure_valid(run, case, result))
    assert samples == [left]
    assert [sample.value for sample in result.samples] == [2.0]
    assert result.voids == 2
    whole = together([report, report]).results["row"]
    assert whole.voids == 4
    assert "measured again 4 times" in table(report, [whole])[-1]


def test_a_row_whose_samples_are_all_void_fails_and_other_errors_are_not_tried_again(tmp_path: Path) -> None:
    from cases import FULL, Result, Run, Sample, VoidSampleError
    from run import measure_valid

    for errors in ([VoidSampleError("too slow")] * 3, [TimeoutError("none")]):
        case = _case_of([*errors, Sample(2.0)])
        result = Result.of(case)
        with Run(replace(FULL, prepared=False), tmp_path) as run, pytest.raises(type(errors[0])):
            measure_valid(run, case, result)
        assert [case.measure(run).value] == [2.0]
        assert result.voids == len(errors) - 1


def test_runs_are_told_with_what_made_them_and_not_with_where_they_went() -> None:
    from runs import together

    first, second, third = _report({}), _report({}), _report({})
    first.arguments = "python benchmarks/run.py --peers --output /somewhere/run-1"
    second.arguments = "python benchmarks/run.py --output=run-2 --peers"
    third.arguments = "python benchmarks/run.py --only 'a|b' --quick"
    both = together([first, second])
    assert both.arguments == "2 times python benchmarks/run.py --peers"
    assert together([first]).arguments == "python benchmarks/run.py --peers"
    whole = "3 times python benchmarks/run.py --peers and python benchmarks/run.py --only 'a|b' --quick"
    assert together([both, third]).arguments == whole


def test_what_is_recorded_can_be_read_again_and_has_a_line_for_each_sample() -> None:
    from report import Report
    from runs import together

    one = _report({"ws.download": [1.0, 2.0], "nothing": []}, missing={"nginx": "not there"})
    whole = together([one, one])
    text = whole.to_text()
    assert Report.from_json(json.loads(text)) == whole
    assert sum(line.strip().startswith('{"value"') for line in text.splitlines()) == 4


def test_goals_name_every_peer_that_does_as_much_and_the_fastest_of_the_others() -> None:
    report = _report(
        {
            "ws.upload": [2.0, 2.0],
            "peer.arrow-flight.upload": [4.0, 4.0],
            "peer.durable-streams-npm.upload": [1.0, 1.0],
            "peer.nginx.upload": [8.0, 8.0],
            "peer.rsync.upload": [1.0, 1.0],
        }
    )
    what = "WebSocket, upload: ahead of"
    assert _goal(report, f"{what} Arrow Flight, which does as much")[1:4] == ["0.50", "≥ 1", "**missed**"]
    assert _goal(report, f"{what} Durable Streams (npm), which does as much")[1:4] == ["2.00", "≥ 1", "met"]
    assert _goal(report, f"{what} nginx, the fastest of those that do less")[1:6] == ["0.25", "–", "", "≥ 1", "missed"]


def test_ours_are_measured_directly_before_transfers_that_are_as_much_work() -> None:
    from peer_rows import side_by_side
    from peers.flight import FlightFollowing, FlightStoring
    from peers.nginx import Nginx

    assert all(side_by_side(FlightStoring, what) for what in ("upload", "download"))
    assert all(side_by_side(FlightFollowing, what) for what in ("upload", "follow"))
    assert [side_by_side(Nginx, what) for what in ("upload", "download", "plain_download")] == [False, False, True]
    assert not side_by_side(FlightFollowing, "lines")


def test_ahead_of_arrow_flight_that_is_followed_is_a_must_over_either_transport() -> None:
    flight = "Arrow Flight, followed, which does as much"
    report = _report(
        {
            row: [value]
            for what in ("upload", "follow", "lines")
            for row, value in (
                (f"ws.{what}", 2.0),
                (f"grpc.{what}", 0.5),
                (f"peer.arrow-flight-followed.{what}", 1.0),
            )
        }
    )
    upload, follow, lines = ("upload: ahead of", "follow while uploading: ahead of", "lines of 100 bytes: ahead of")
    for what in (upload, follow, lines):
        assert _goal(report, f"WebSocket, {what} {flight}")[1:6] == ["2.00", "≥ 1", "met", "–", ""]
        assert _goal(report, f"gRPC, {what} {flight}")[1:6] == ["0.50", "≥ 1", "**missed**", "–", ""]


def test_where_less_is_better_ahead_means_less() -> None:
    report = _report({"ws.latency": [0.2], "peer.durable-streams-npm.latencies": [0.8]})
    for result in report.results.values():
        result.lower_is_better = True
    what = "WebSocket, write of a line to its arrival: ahead of Durable Streams (npm), which does as much"
    assert _goal(report, what)[1:4] == ["4.00", "≥ 1", "met"]


def test_a_peer_that_takes_long_is_measured_once_in_a_run(tmp_path: Path) -> None:
    from cases import QUICK, Case, Run, Sample
    from run import measure

    calls: list[str] = []

    def slow(run: Run) -> Sample:
        calls.append("slow")
        return Sample(1.0, seconds=3.5)

    def quick(run: Run) -> Sample:
        calls.append("quick")
        return Sample(1.0, seconds=0.5)

    cases = [Case(name, name, "Group", "GB/s", do, patience=3.0) for name, do in (("a", slow), ("b", quick))]
    with Run(QUICK, tmp_path) as run:
        results = measure(cases, run)
    assert calls == ["slow", "quick", "quick", "quick"]
    assert [len(result.samples) for result in results.values()] == [1, QUICK.rounds]


def test_what_is_reached_by_hand_is_measured_directly_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cases import CASES, LIMITS, QUICK, Case, Run, Sample
    from run import measure

    calls: list[str] = []

    def row(name: str, value: float) -> Any:
        def do(run: Run) -> Sample:
            calls.append(name)
            return Sample(value, seconds=0.5)

        return do

    monkeypatch.setitem(CASES, "hand", Case("hand", "hand", LIMITS, "GB/s", row("hand", 8.0)))
    case = Case("ours", "ours", "Group", "GB/s", row("ours", 4.0), floor="hand")
    with Run(QUICK, tmp_path) as run:
        results = measure([case], run)
    assert calls == ["hand", "ours"] * QUICK.rounds
    assert [sample.floor for sample in results["ours"].samples] == [8.0] * QUICK.rounds


@pytest.mark.parametrize(("seconds", "again"), [(0.5, True), (2.0, False)])
def test_what_moves_something_is_done_once_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, again: bool
) -> None:
    import cases
    from cases import FULL, UPLOAD, Case, Run, Sample
    from run import measure

    calls: list[str] = []
    monkeypatch.setattr(cases, "refresh_memory", lambda folder, size: calls.append(f"memory for {size >> 20} MiB"))

    def do(run: Run) -> Sample:
        calls.append("row")
        return Sample(float(len(calls)), seconds=seconds)

    case = Case("ours", "ours", UPLOAD, "GB/s", do, new_file=True)
    with Run(replace(FULL, rounds=2, size=1 << 20), tmp_path) as run:
        samples = measure([case], run)["ours"].samples
    counted = ["memory for 257 MiB", "row"]
    assert calls == ["row", *counted, *(["row"] if again else []), *counted]
    assert [sample.value for sample in samples] == [3.0, float(len(calls))]


def test_memory_is_written_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fresh_memory

    sizes: list[int] = []
    monkeypatch.setattr(fresh_memory, "_REPORTING", tmp_path)
    monkeypatch.setattr(
        "time.sleep", lambda _: sizes.extend(path.stat().st_size for path in tmp_path.glob("fresh-memory"))
    )
    fresh_memory.refresh_memory(tmp_path, 3 << 20)
    assert sizes == [3 << 20]
    assert not list(tmp_path.iterdir())


def test_a_download_of_a_peer_that_arrives_changed_or_short_is_noticed_within_the_time() -> None:
    from peers.programs.contents import DATA, MEBIBYTE, hash_of, pieces, timed_download

    def arriving(parts: Iterator[bytes]) -> Any:
        return lambda take: [take(part) for part in parts]

    size = 3 * MEBIBYTE
    assert timed_download(arriving(pieces(size)), size, hash_of(size)) > 0
    changed = iter([DATA, bytes([DATA[0] ^ 1]) + DATA[1:], DATA])
    with pytest.raises(AssertionError, match="other bytes"):
        timed_download(arriving(changed), size, hash_of(size))
    with pytest.raises(AssertionError, match="2097152 bytes of 3145728"):
        timed_download(arriving(pieces(2 * MEBIBYTE)), size, None)
    other = bytes(MEBIBYTE)
    assert timed_download(arriving(iter([other, DATA])), 2 * MEBIBYTE, hash_of(2 * MEBIBYTE, other)) > 0


def test_what_is_done_by_hand_moves_every_byte(tmp_path: Path) -> None:
    from floor import Floor, make_warm_file
    from raw_socket import MESSAGE, RawSocket, random_message

    size = 2 * MESSAGE + 4321
    expected = (random_message() * 3)[:size]
    warm = make_warm_file()
    try:
        with Floor() as floor:
            floor.upload(tmp_path / "up", size)
            floor.follow(tmp_path / "followed", size)
            floor.upload(warm, size, warm=True)
            assert floor.download(tmp_path / "up", size) > 0
        assert (tmp_path / "up").read_bytes() == expected
        assert (tmp_path / "followed").read_bytes() == expected
        assert warm.read_bytes()[:size] == expected
    finally:
        warm.unlink()
    with RawSocket() as raw:
        assert raw.seconds(size) > 0
        assert raw.seconds(size, distinct=True) > 0
