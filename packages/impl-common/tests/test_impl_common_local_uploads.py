from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from tailrace_client_upload_api import UploadClient
from tailrace_common_api import (
    DigestMismatch,
    LengthMismatch,
    ResourceState,
    StorageFailure,
    StorageFull,
    UploadAborted,
    Visibility,
)
from tailrace_impl_common import DirectoryClient, DiscardingClient, head_of

DATA = b"".join(b"line %d\n" % number for number in range(40_000)) + b"unterminated"


@pytest.fixture(params=["directory", "discard"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> UploadClient:
    return DirectoryClient(tmp_path / "new") if request.param == "directory" else DiscardingClient()


def _files(directory: Path) -> dict[str, Path]:
    return {path.name.split("-", 1)[1]: path for path in (directory / "new").iterdir()}


async def test_a_complete_upload_has_the_status_that_a_server_would_give(client: UploadClient) -> None:
    async with client.upload("a.log", lines=True) as upload:
        for start in range(0, len(DATA), 1000):
            await upload.write(DATA[start : start + 1000])
        checkpoint = await upload.flush()
        assert checkpoint == upload.announced
        assert (checkpoint.size, checkpoint.newlines, checkpoint.head) == (len(DATA), 40_000, head_of(DATA))
    status = upload.status
    assert (status.state, status.size, status.lines) == (ResourceState.COMPLETED, len(DATA), 40_001)
    assert status.head == head_of(DATA)
    with pytest.raises(UploadAborted):
        await upload.write(b"more")


async def test_leaving_with_an_exception_fails_the_upload(client: UploadClient) -> None:
    upload = client.upload("a.log")

    async def produce() -> None:
        async with upload:
            await upload.write(b"some")
            await upload.flush()
            raise ValueError("the source broke")

    with pytest.raises(ValueError, match="broke"):
        await produce()
    assert upload.status.state is ResourceState.FAILED
    assert upload.status.reason == "ValueError: the source broke"
    assert upload.status.size == 4


@pytest.fixture
def relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryClient:
    """A client of a directory that is given from where the process no longer is."""
    monkeypatch.chdir(tmp_path)
    client = DirectoryClient(Path("new"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    return client


async def test_a_relative_directory_is_the_one_it_was_when_it_was_given(
    relative: DirectoryClient, tmp_path: Path
) -> None:
    async with relative.upload("a.log") as upload:
        await upload.write(b"some")
    [file] = (tmp_path / "new").glob("*-a.log")
    assert file.read_bytes() == b"some"
    assert upload.reference == file.as_uri()


async def test_what_cannot_be_made_durable_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    upload = DirectoryClient(tmp_path / "new").upload("a.log")
    await upload.open()
    await upload.write(b"some")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        await upload.finish()
    assert upload.status.state is ResourceState.FAILED
    with pytest.raises(StorageFull):
        await upload.finish()
    assert (await upload.abort()) == upload.status


async def test_a_flush_ends_with_the_upload(client: UploadClient, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = client.upload("a.log")
    await upload.open()
    going_on = threading.Event()
    monkeypatch.setattr(upload, "_store", lambda data: going_on.wait())
    await upload.write(b"some")
    await asyncio.sleep(0)
    await upload.write(b"more")
    flushing = asyncio.create_task(upload.flush())
    aborting = asyncio.create_task(upload.abort())
    await asyncio.sleep(0)
    # The rest had not been stored, and is dropped.
    going_on.set()
    await aborting
    assert upload.status.size == 4
    with pytest.raises(UploadAborted):
        await flushing


async def test_a_finish_that_is_cancelled_goes_on(client: UploadClient) -> None:
    upload = client.upload("a.log")
    await upload.open()
    await upload.write(b"some")
    await upload.flush()
    finishing = asyncio.create_task(upload.finish())
    await asyncio.sleep(0)
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    assert (await upload.finish()).state is ResourceState.COMPLETED


async def test_what_was_declared_is_checked(client: UploadClient) -> None:
    upload = client.upload("short", length=10)
    await upload.open()
    await upload.write(b"123")
    with pytest.raises(LengthMismatch) as short:
        await upload.finish()
    assert (short.value.declared, short.value.actual) == (10, 3)
    assert upload.status.state is ResourceState.FAILED
    upload = client.upload("long", length=2)
    await upload.open()
    with pytest.raises(LengthMismatch):
        await upload.write(b"123")
    upload = client.upload("other", sha256=hashlib.sha256(b"1").digest())
    await upload.open()
    await upload.write(b"2")
    with pytest.raises(DigestMismatch) as digest:
        await upload.finish()
    assert digest.value.actual == hashlib.sha256(b"2").hexdigest()
    async with client.upload("same", sha256=hashlib.sha256(b"1").digest()) as good:
        await good.write(b"1")
    assert good.status.state is ResourceState.COMPLETED


async def test_the_directory_holds_the_bytes_and_the_status(tmp_path: Path) -> None:
    client = DirectoryClient(tmp_path / "new")
    async with client.upload("../evil/name", labels={"k": "v"}) as upload:
        await upload.write(DATA)
        await upload.flush()
        (live,) = _files(tmp_path).values()
        assert live.read_bytes() == DATA
    files = _files(tmp_path)
    assert set(files) == {".._evil_name", ".._evil_name.status.json"}
    assert files[".._evil_name"].as_uri() == upload.reference
    summary = json.loads(files[".._evil_name.status.json"].read_text())
    assert summary["head"] == head_of(DATA).hex()
    assert summary["state"] == "COMPLETED"
    assert summary["labels"] == {"k": "v"}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


async def test_an_atomic_file_appears_complete_or_never(tmp_path: Path) -> None:
    client = DirectoryClient(tmp_path / "new")
    async with client.upload("good", visibility=Visibility.ATOMIC) as upload:
        await upload.write(DATA)
        await upload.flush()
        assert set(_files(tmp_path)) == {"good.part"}
    assert set(_files(tmp_path)) == {"good", "good.status.json"}
    upload = client.upload("bad", visibility=Visibility.ATOMIC)
    await upload.open()
    await upload.write(DATA)
    assert await upload.abort() is None
    assert set(_files(tmp_path)) == {"good", "good.status.json"}


async def test_a_directory_that_cannot_be_used_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailure):
        await DirectoryClient(tmp_path / "file").upload("x").open()
