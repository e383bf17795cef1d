"""Rows of what the machine can do without Tailrace: the socket, the disk, and both together by hand."""

from __future__ import annotations

from pathlib import Path

from cases import GIGABYTE, LIMITS, Meter, Run, Sample, case, milliseconds
from floor import Floor, make_warm_file, write_seconds
from processes import OURSELVES
from raw_socket import RawSocket


def raw_socket_of(run: Run) -> RawSocket:
    """Return the raw socket of a run."""
    return run.keep("baseline.raw", lambda: run.stack.enter_context(RawSocket()))


def _floor_of(run: Run) -> Floor:
    return run.keep("baseline.floor", lambda: run.stack.enter_context(Floor()))


@case("raw.socket", "raw loopback socket, 1 MiB messages", group=LIMITS)
def raw_socket(run: Run) -> Sample:
    raw = raw_socket_of(run)
    with Meter((raw.pid,), OURSELVES) as meter:
        seconds = raw.seconds(run.scale.size)
    return meter.sample(run.scale.size / seconds / GIGABYTE, bytes=run.scale.size)


@case("raw.memory", "the same from 64 MiB into 64 MiB, which no cache holds", group=LIMITS)
def raw_memory(run: Run) -> Sample:
    raw = raw_socket_of(run)
    with Meter((raw.pid,), OURSELVES) as meter:
        seconds = raw.seconds(run.scale.size, distinct=True)
    return meter.sample(run.scale.size / seconds / GIGABYTE, bytes=run.scale.size)


@case("raw.ping", "raw loopback socket, 100 bytes there and back", group=LIMITS, unit="ms", lower_is_better=True)
def raw_ping(run: Run) -> Sample:
    raw = raw_socket_of(run)
    with Meter((raw.pid,), OURSELVES) as meter:
        times = milliseconds(raw.round_trips(run.scale.latencies))
    return meter.sample(times["p50_ms"], count=run.scale.latencies, more=times)


def _written(run: Run, *, sync: bool) -> Sample:
    path = run.scratch / "written"
    with Meter((), OURSELVES) as meter:
        seconds = write_seconds(path, run.scale.size, sync=sync)
    path.unlink()
    return meter.sample(run.scale.size / seconds / GIGABYTE, bytes=run.scale.size)


@case("raw.write", "plain write of a new file", group=LIMITS, new_file=True)
def plain_write(run: Run) -> Sample:
    return _written(run, sync=False)


@case("raw.write_synced", "plain write of a new file, synced at the end", group=LIMITS, new_file=True)
def plain_write_synced(run: Run) -> Sample:
    return _written(run, sync=True)


@case(
    "floor.upload",
    "floor: blocking upload by hand, hashed, new file, synced at the end",
    group=LIMITS,
    new_file=True,
)
def floor_upload(run: Run) -> Sample:
    floor, path = _floor_of(run), run.scratch / "floor-upload"
    with Meter((floor.pid,), OURSELVES) as meter:
        seconds = floor.upload(path, run.scale.size)
    if path.stat().st_size != run.scale.size:
        raise AssertionError("the floor has not stored everything")
    path.unlink()
    return meter.sample(run.scale.size / seconds / GIGABYTE, bytes=run.scale.size)


def _warm_file(run: Run) -> Path:
    path = make_warm_file()
    run.stack.callback(path.unlink)
    return path


@case("floor.upload_warm", "floor: blocking upload by hand, hashed, warm file", group=LIMITS)
def floor_upload_warm(run: Run) -> Sample:
    floor, path = _floor_of(run), run.keep("baseline.warm", lambda: _warm_file(run))
    with Meter((floor.pid,), OURSELVES) as meter:
        seconds = floor.upload(path, run.scale.size, warm=True)
    return meter.sample(run.scale.size / seconds / GIGABYTE, bytes=run.scale.size)


@case("floor.download", "floor: blocking download by hand, hashed on both sides", group=LIMITS)
def floor_download(run: Run) -> Sample:
    floor, path = _floor_of(run), run.scratch / "floor-download"
    run.keep("baseline.stored", lambda: write_seconds(path, run.scale.size, sync=False))
    with Meter((floor.pid,), OURSELVES) as meter:
        seconds = floor.download(path, run.scale.size)
    return meter.sample(run.scale.size / seconds / GIGABYTE, bytes=run.scale.size)


@case(
    "floor.follow",
    "floor: blocking follower by hand of an upload to a new file, hashed by all three",
    group=LIMITS,
    new_file=True,
)
def floor_follow(run: Run) -> Sample:
    floor, path = _floor_of(run), run.scratch / "floor-follow"
    with Meter((floor.pid,), (*OURSELVES, floor.follower_pid)) as meter:
        seconds = floor.follow(path, run.scale.size)
    if path.stat().st_size != run.scale.size:
        raise AssertionError("the floor has not stored everything")
    path.unlink()
    return meter.sample(run.scale.size / seconds / GIGABYTE, bytes=run.scale.size)
