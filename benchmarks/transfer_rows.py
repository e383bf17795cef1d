"""Rows of large transfers: up, down, live, in ranges, several at once, and by blocking code."""

from __future__ import annotations

import workloads
from cases import DOWNLOAD, MEBIBYTE, UPLOAD, Run, Sample, case, transport_case
from raw_socket import random_message

import tailrace
from tailrace_common_api import Reference


def stored(run: Run) -> str:
    """Return the reference of a resource for rows that read; each byte of it was compared once over each transport."""

    def make() -> str:
        reference = run.wait(workloads.store(run.url("grpc"), run.scale.size))
        for transport in ("grpc", "ws"):
            run.wait(workloads.compare_download(run.url(transport), reference, run.scale.size))
        return reference

    return run.keep("transfer.stored", make)


def upload_into(run: Run, transport: str, profile: str, *, text: bool = False, lines: bool = False) -> Sample:
    """Measure an upload to the server of a profile; ``text`` for lines of 100 bytes instead of random bytes."""
    url, meter = run.url(transport, profile), run.meter(profile)
    message = workloads.TEXT if text else random_message()
    reference = run.wait(workloads.timed_upload(url, run.scale.size, meter, message, lines=lines))
    run.wait(workloads.delete(url, [reference]))
    return meter.throughput(run.scale.size)


@transport_case("upload", "upload, new file, synced at the end", group=UPLOAD, floor="floor.upload", new_file=True)
def upload(run: Run, transport: str) -> Sample:
    return upload_into(run, transport, "plain")


@transport_case("upload_warm", "upload, warm file", group=UPLOAD, floor="floor.upload_warm")
def upload_warm(run: Run, transport: str) -> Sample:
    return upload_into(run, transport, "warm")


@transport_case("upload_blocking", "upload, warm file, blocking façade", group=UPLOAD, floor="floor.upload_warm")
def upload_blocking(run: Run, transport: str) -> Sample:
    with tailrace.sync.connect(run.url(transport, "warm")) as client:
        client.list_page(limit=1)
        meter = run.meter("warm")
        with meter, client.upload("benchmark") as session:
            for piece in workloads.pieces(run.scale.size):
                session.write(piece)
        workloads.check_stored(session.status, run.scale.size)
        client.delete(session.reference)
    return meter.throughput(run.scale.size)


def _uploads(run: Run, transport: str, number: int) -> Sample:
    url, meter = run.url(transport, "warm"), run.meter("warm")
    size = max(1, run.scale.size // MEBIBYTE // number) * number * MEBIBYTE
    references = run.wait(workloads.timed_uploads(url, size, number, meter))
    run.wait(workloads.delete(url, references))
    return meter.throughput(size)


@transport_case("uploads_8", "8 uploads at once, warm file", group=UPLOAD, beside=("upload_warm",))
def uploads_8(run: Run, transport: str) -> Sample:
    return _uploads(run, transport, 8)


@transport_case("uploads_64", "64 uploads at once, warm file", group=UPLOAD)
def uploads_64(run: Run, transport: str) -> Sample:
    return _uploads(run, transport, 64)


@transport_case("download", "download of a completed resource", group=DOWNLOAD, floor="floor.download")
def download(run: Run, transport: str) -> Sample:
    reference, meter = stored(run), run.meter()
    run.wait(workloads.timed_download(run.url(transport), reference, run.scale.size, meter))
    return meter.throughput(run.scale.size)


@case("http.download", "plain HTTP GET, by a blocking client that counts", group=DOWNLOAD, floor="floor.download")
def plain_download(run: Run) -> Sample:
    reference = Reference.parse(stored(run))
    meter = run.meter()
    status, received = workloads.plain_get(f"{run.url('http')}/r/{reference.id}", meter)
    if (status, received) != (200, run.scale.size):
        raise AssertionError(f"{received} bytes of {run.scale.size} arrived with status {status}")
    return meter.throughput(run.scale.size)


@transport_case("download_blocking", "download, blocking façade", group=DOWNLOAD, floor="floor.download")
def download_blocking(run: Run, transport: str) -> Sample:
    reference = stored(run)
    received = 0
    with tailrace.sync.connect(run.url(transport)) as client, client.open(reference) as resource:
        resource.status()
        with run.meter() as meter, resource.chunks() as chunks:
            for chunk in chunks:
                received += len(chunk.data)
    if received != run.scale.size:
        raise AssertionError(f"{received} bytes of {run.scale.size} arrived")
    return meter.throughput(run.scale.size)


@transport_case(
    "follow",
    "follow while uploading, until the follower has all",
    group=DOWNLOAD,
    floor="floor.follow",
    new_file=True,
)
def follow(run: Run, transport: str) -> Sample:
    url, meter = run.url(transport), run.meter()
    reference = run.wait(workloads.timed_follow(url, run.scale.size, meter))
    run.wait(workloads.delete(url, [reference]))
    return meter.throughput(run.scale.size)


def _ranges(run: Run, transport: str, length: int, count: int) -> Sample:
    reference, meter = stored(run), run.meter()
    run.wait(workloads.timed_ranges(run.url(transport), reference, run.scale.size, length, count, meter))
    return meter.throughput(length * count, {"each_ms": meter.seconds / count * 1e3})


@transport_case("ranges_64k", "random ranges of 64 KiB, one after the other", group=DOWNLOAD)
def ranges_small(run: Run, transport: str) -> Sample:
    return _ranges(run, transport, 64 * 1024, 400)


@transport_case("ranges_1m", "random ranges of 1 MiB, one after the other", group=DOWNLOAD)
def ranges_large(run: Run, transport: str) -> Sample:
    return _ranges(run, transport, MEBIBYTE, 100)
