"""Rows of what shall cost the same however much there is: starting on many resources, listing them, reopening."""

from __future__ import annotations

from pathlib import Path

from cases import MANY, Meter, Run, Sample, case
from flat import page_times, reopen, server_on, start_up
from processes import OURSELVES
from stored_resources import make_resources

import tailrace
from tailrace_client_download_api import EVERYTHING


def _stored(run: Run) -> Path:
    """Return a server's folder with many resources."""

    def make() -> Path:
        data = run.scratch / "many"
        make_resources(data, run.scale.resources, unfinished=_unfinished(run))
        return data

    return run.keep("flat.stored", make)


def _unfinished(run: Run) -> int:
    return run.scale.resources // 100


@case(
    "start",
    "start on 10,000 stored resources, 100 of them unfinished (quick: 2,000 and 20), until ready",
    group=MANY,
    unit="ms",
    lower_is_better=True,
    slow=True,
)
def start(run: Run) -> Sample:
    data, count = _stored(run), run.scale.resources
    with Meter((), OURSELVES) as meter:
        row = start_up(data, run.scratch, count, _unfinished(run), 1)
    more = {"processor_ms": row["cpu_s"] * 1e3, "resident_MiB": row["resident_mib"]}
    return meter.sample(row["start_s"] * 1e3, count=1, more=more)


@case(
    "list",
    "a page of 100 of them, at the end of the listing",
    group=MANY,
    unit="ms",
    lower_is_better=True,
    slow=True,
)
def list_pages(run: Run) -> Sample:
    async def walk(url: str) -> dict[str, dict[str, float]]:
        async with tailrace.connect(url) as client:
            return await page_times(client, EVERYTHING, run.scale.resources)

    with server_on(_stored(run), run.scratch) as server, Meter((server.pid,), OURSELVES) as meter:
        found = run.wait(walk(server.urls["grpc"]))
    more = {"at_its_beginning_ms": found["first"]["p50_ms"], "at_its_end,_p99_ms": found["last"]["p99_ms"]}
    return meter.sample(found["last"]["p50_ms"], count=int(found["pages"]["number"]), more=more)


@case(
    "reopen",
    "reopening an interrupted upload of 1 TB (quick: 100 GB), until the server answers",
    group=MANY,
    unit="ms",
    lower_is_better=True,
    slow=True,
    patience=3.0,
)
def reopen_upload(run: Run) -> Sample:
    with Meter((), OURSELVES) as meter:
        row = reopen(run.scratch, "grpc", run.scale.interrupted)
    return meter.sample(row["reopen_s"] * 1e3, count=1, more={"start_of_the_server_ms": row["start_s"] * 1e3})
