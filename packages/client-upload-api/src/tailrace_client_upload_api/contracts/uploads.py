"""Contract tests of the upload interfaces; subclass them in the tests of an implementation.

Needs the extra ``contracts`` (pytest, pytest-asyncio in auto mode). A subclass overrides the fixture and the hook::

    class TestMyUploads(UploadClientContract):
        @pytest.fixture
        async def upload_client(self): ...

        async def stored_bytes(self, upload): ...
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from tailrace_client_upload_api._client import Buffer, UploadClient, UploadSession
from tailrace_common_api import (
    DigestMismatch,
    InvalidArgument,
    LengthMismatch,
    ResourceState,
    TailraceError,
    UploadAborted,
    Visibility,
)


class UploadClientContract:
    """What every :class:`UploadClient` does."""

    @pytest.fixture
    def upload_client(self) -> UploadClient:
        """Give the client under test."""
        raise NotImplementedError("the fixture `upload_client` gives the client under test")

    async def stored_bytes(self, upload: UploadSession) -> bytes:
        """Return what is stored of ``upload``, without the client under test."""
        raise NotImplementedError("the hook `stored_bytes` looks at what is stored")

    async def test_reference_and_limits_come_before_any_data(self, upload_client: UploadClient) -> None:
        async with upload_client.upload("a.txt", content_type="text/plain", lines=True, labels={"k": "v"}) as upload:
            assert upload.id in upload.reference
            assert upload.limits.chunk_size > 0
            assert upload.offset == 0
            status = upload.status
            assert status.state is ResourceState.INITIATED
            assert (status.metadata.name, status.metadata.content_type) == ("a.txt", "text/plain")
            assert status.metadata.labels == {"k": "v"}

    async def test_an_upload_that_is_not_open_has_nothing(self, upload_client: UploadClient) -> None:
        upload = upload_client.upload("a")
        with pytest.raises(RuntimeError):
            await upload.write(b"x")
        assert await upload.abort() is None

    async def test_bytes_of_any_kind_arrive_in_order(self, upload_client: UploadClient) -> None:
        changing = bytearray(b"second")
        async with upload_client.upload("a") as upload:
            await upload.write(b"first")
            await upload.write(b"")
            await upload.write(changing)
            changing[:] = b"xxxxxx"
            await upload.write(memoryview(b"-third-")[1:6])
            assert upload.offset == 16
        assert upload.status.state is ResourceState.COMPLETED
        assert upload.status.size == 16
        assert await self.stored_bytes(upload) == b"firstsecondthird"

    async def test_nothing_completes_as_zero_bytes(self, upload_client: UploadClient) -> None:
        async with upload_client.upload("empty", lines=True) as upload:
            pass
        assert (upload.status.size, upload.status.lines) == (0, 0)
        assert upload.status.head.hex() == "10e45c7ce2292320743df94ee4c78a2a"
        assert await self.stored_bytes(upload) == b""

    async def test_lines_are_counted(self, upload_client: UploadClient) -> None:
        async with upload_client.upload("a", lines=True) as upload:
            await upload.write(b"one\ntwo\r\nthree")
            checkpoint = await upload.flush()
            assert checkpoint.newlines == 2
        assert upload.status.lines == 3

    async def test_a_large_write_arrives(self, upload_client: UploadClient) -> None:
        data = b"".join(number.to_bytes(4, "big") for number in range(1_500_000))
        async with upload_client.upload("large") as upload:
            await upload.write(data)
        assert upload.status.size == len(data)
        assert await self.stored_bytes(upload) == data

    async def test_flush_announces_what_was_written(self, upload_client: UploadClient) -> None:
        async with upload_client.upload("a") as upload:
            for number in range(3):
                await upload.write(b"x" * 1000)
                checkpoint = await upload.flush()
                assert checkpoint.size == (number + 1) * 1000
                assert upload.announced.size == checkpoint.size
                assert await self.stored_bytes(upload) == b"x" * checkpoint.size

    async def test_checkpoints_rise_and_end_with_the_upload(self, upload_client: UploadClient) -> None:
        upload = upload_client.upload("a")
        await upload.open()

        async def collect() -> list[int]:
            async with aclosing(upload.checkpoints()) as checkpoints:
                return [checkpoint.size async for checkpoint in checkpoints]

        collecting = asyncio.create_task(collect())
        for _ in range(5):
            await upload.write(b"x" * 10)
            await upload.flush()
        await upload.finish()
        sizes = await collecting
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == 50

    async def test_an_undisturbed_upload_is_not_interrupted(self, upload_client: UploadClient) -> None:
        upload = upload_client.upload("a")
        await upload.open()

        async def collect() -> list[TailraceError | None]:
            async with aclosing(upload.interruptions()) as interruptions:
                return [interruption async for interruption in interruptions]

        collecting = asyncio.create_task(collect())
        await upload.write(b"x" * 10)
        await upload.flush()
        assert upload.interruption is None
        await upload.finish()
        assert await collecting == []

    async def test_finish_can_be_repeated_and_ends_writing(self, upload_client: UploadClient) -> None:
        upload = upload_client.upload("a")
        await upload.open()
        await upload.write(b"x")
        status = await upload.finish()
        assert await upload.finish() == status
        with pytest.raises(UploadAborted):
            await upload.write(b"y")

    async def test_leaving_with_an_exception_fails_the_upload(self, upload_client: UploadClient) -> None:
        upload = upload_client.upload("a")

        async def produce() -> None:
            async with upload:
                await upload.write(b"kept")
                await upload.flush()
                raise ValueError("the source broke")

        with pytest.raises(ValueError, match="broke"):
            await produce()
        assert upload.status.state is ResourceState.FAILED
        assert upload.status.reason == "ValueError: the source broke"
        assert await self.stored_bytes(upload) == b"kept"

    async def test_cancelling_takes_effect_at_once(self, upload_client: UploadClient) -> None:
        upload = upload_client.upload("a")
        writing = asyncio.Event()

        async def produce() -> None:
            async with upload:
                await upload.write(b"kept")
                await upload.flush()
                writing.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(produce())
        await writing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert upload.status.state is ResourceState.FAILED
        assert upload.status.reason == "cancelled"

    async def test_abort_is_final_and_harmless_twice(self, upload_client: UploadClient) -> None:
        upload = upload_client.upload("a")
        await upload.open()
        await upload.write(b"some")
        await upload.flush()
        status = await upload.abort("not needed")
        assert status is not None
        assert (status.state, status.reason) == (ResourceState.FAILED, "not needed")
        await upload.abort("again")
        assert upload.status.reason == "not needed"
        with pytest.raises(TailraceError):
            await upload.write(b"x")
        with pytest.raises(TailraceError):
            await upload.finish()

    async def test_an_aborted_atomic_upload_leaves_nothing(self, upload_client: UploadClient) -> None:
        upload = upload_client.upload("a", visibility=Visibility.ATOMIC)
        await upload.open()
        await upload.write(b"some")
        assert await upload.abort() is None

    async def test_a_declared_length_is_kept(self, upload_client: UploadClient) -> None:
        async with upload_client.upload("a", length=3) as exact:
            await exact.write(b"123")
        assert exact.status.state is ResourceState.COMPLETED
        short = upload_client.upload("a", length=3)
        await short.open()
        await short.write(b"12")
        with pytest.raises(LengthMismatch) as missed:
            await short.finish()
        assert (missed.value.declared, missed.value.actual) == (3, 2)
        long = upload_client.upload("a", length=3)
        await long.open()
        with pytest.raises(LengthMismatch):
            await _write_and_finish(long, b"1234")

    async def test_a_declared_sha256_is_checked(self, upload_client: UploadClient) -> None:
        data = b"0123456789" * 100_000
        async with upload_client.upload("a", sha256=hashlib.sha256(data).digest()) as good:
            await good.write(data)
        assert good.status.state is ResourceState.COMPLETED
        bad = upload_client.upload("a", sha256=hashlib.sha256(b"other").digest())
        await bad.open()
        await bad.write(data)
        with pytest.raises(DigestMismatch) as mismatch:
            await bad.finish()
        assert mismatch.value.actual == hashlib.sha256(data).hexdigest()

    @pytest.mark.parametrize(
        "arguments",
        [
            {"name": ""},
            {"name": "a\nb"},
            {"name": "a", "content_type": "text"},
            {"name": "a", "labels": {"": "x"}},
            {"name": "a", "length": -1},
            {"name": "a", "sha256": b"short"},
            {"name": "a", "idempotency_key": ""},
        ],
    )
    async def test_bad_requests_are_refused_where_they_are_built(
        self, upload_client: UploadClient, arguments: dict[str, object]
    ) -> None:
        with pytest.raises(InvalidArgument):
            upload_client.upload(**arguments)  # type: ignore[arg-type] # the wrong values are the test

    async def test_text_is_no_data(self, upload_client: UploadClient) -> None:
        async with upload_client.upload("a") as upload:
            with pytest.raises(InvalidArgument):
                await upload.write("text")  # type: ignore[arg-type] # what a user without types may do
            await upload.write(b"bytes")
        assert upload.status.size == 5

    async def test_sources_are_sent_as_they_come(self, upload_client: UploadClient) -> None:
        async def produce() -> AsyncGenerator[Buffer, None]:
            yield b"async "
            yield bytearray(b"pieces")

        async with upload_client.upload("a") as upload:
            assert await upload.send_all([b"some ", memoryview(b"pieces, ")]) == 13
            assert await upload.send_all(produce()) == 12
        assert await self.stored_bytes(upload) == b"some pieces, async pieces"

    async def test_many_uploads_run_at_once(self, upload_client: UploadClient) -> None:
        async def produce(number: int) -> UploadSession:
            async with upload_client.upload(f"upload {number}") as upload:
                for _ in range(10):
                    await upload.write(b"%d\n" % number)
                    await upload.flush()
            return upload

        uploads = await asyncio.gather(*(produce(number) for number in range(10)))
        assert len({upload.id for upload in uploads}) == 10
        for number, upload in enumerate(uploads):
            assert await self.stored_bytes(upload) == b"%d\n" % number * 10


async def _write_and_finish(upload: UploadSession, data: bytes) -> None:
    await upload.write(data)
    await upload.finish()
