"""Rows of what integrity and durability cost: settings that can be changed, and the parts that cannot."""

from __future__ import annotations

import statistics
import time

import workloads
from cases import GIGABYTE, SETTINGS, Meter, Run, Sample, case, milliseconds, transport_case
from processes import OURSELVES
from raw_socket import random_message
from transfer_rows import stored, upload_into

from tailrace_impl_common import HeadHasher, chunk_hash
from tailrace_impl_server._journal import pack_records

_PLACES = 8
"""Chunks of 1 MiB that a server has at hand at the same time, about."""
_ORDERS = (False, True), (True, False), (False, True)
"""In which uploads with and without line access take turns."""
ADDED = "added_to_the_server"
"""Name of what line access adds to the processor time of the server."""


@transport_case(
    "fsync_upload", "upload, new file, durability fsync", group=SETTINGS, floor="floor.upload", new_file=True
)
def fsync_upload(run: Run, transport: str) -> Sample:
    return upload_into(run, transport, "fsync")


@transport_case("fsync_lines", "lines of 100 bytes, durability fsync", group=SETTINGS, unit="thousand/s")
def fsync_lines(run: Run, transport: str) -> Sample:
    url, meter = run.url(transport, "fsync"), run.meter("fsync")
    reference = run.wait(workloads.timed_lines(url, run.scale.lines, meter))
    run.wait(workloads.delete(url, [reference]))
    return meter.rate(run.scale.lines)


@transport_case(
    "fsync_latency",
    "write of a line to its arrival, durability fsync",
    group=SETTINGS,
    unit="ms",
    lower_is_better=True,
)
def fsync_latency(run: Run, transport: str) -> Sample:
    meter = run.meter("fsync")
    times = run.wait(workloads.follow_latencies(run.url(transport, "fsync"), run.scale.latencies // 2, 0.002, meter))
    figures = milliseconds(times)
    return meter.sample(figures["p50_ms"], count=len(times), more=figures)


@transport_case("text_upload", "upload of 100-byte lines, warm file, line access off", group=SETTINGS)
def text_upload(run: Run, transport: str) -> Sample:
    return upload_into(run, transport, "warm", text=True)


@transport_case("text_upload_lines", "upload of 100-byte lines, warm file, line access on", group=SETTINGS)
def text_upload_lines(run: Run, transport: str) -> Sample:
    """In turn with uploads without it: what it adds is less than what the machine does from second to second."""
    samples, added = [], []
    for order in _ORDERS:
        pair = {lines: upload_into(run, transport, "warm", text=True, lines=lines) for lines in order}
        samples.append(pair[True])
        added.append((pair[True].server_cpu / pair[False].server_cpu - 1) * 100)
    sample = sorted(samples, key=lambda sample: sample.value)[len(samples) // 2]
    sample.more[f"{ADDED}_%"] = statistics.median(added)
    return sample


@transport_case("download_unverified", "download, chunk hashes not checked by the client", group=SETTINGS)
def download_unverified(run: Run, transport: str) -> Sample:
    reference, meter, url = stored(run), run.meter(), run.url(transport)
    run.wait(workloads.timed_download(url, reference, run.scale.size, meter, verify=False))
    return meter.throughput(run.scale.size)


@case(
    "integrity",
    "what a server computes of an upload: chunk hashes, heads, records of its journal",
    group=SETTINGS,
    unit="s/GB",
    lower_is_better=True,
)
def integrity(run: Run) -> Sample:
    data = random_message()
    digest = chunk_hash(data)
    # In turn, as a server meets chunks: one that is hashed again and again would stay in the processor's own cache.
    places = [bytearray(data) for _ in range(_PLACES)]
    hasher = HeadHasher()
    count = run.scale.size // len(data)
    with Meter((), OURSELVES) as meter:
        begin = time.process_time()
        for number in range(count):
            pack_records(hasher.update_verified(places[number % _PLACES], digest))
        used = time.process_time() - begin
    if hasher.head() != workloads.expected_head(count * len(data)):
        raise AssertionError("the head is another one")
    return meter.sample(used / (count * len(data) / GIGABYTE), bytes=count * len(data))
