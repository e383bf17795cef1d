"""How uploads of a client end when it is cancelled, in any call, and who is told of that."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from impl_server_manager_bench import Bench, last_status

from tailrace_client_upload_api import ReopenRequest
from tailrace_common_api import ClientSettings, ResourceState, UploadAborted
from tailrace_impl_common import ConnectedClient, InProcessConnection


@asynccontextmanager
async def connected(bench: Bench) -> AsyncGenerator[ConnectedClient, None]:
    manager = await bench.start()
    settings = ClientSettings()
    async with ConnectedClient(InProcessConnection(manager, settings), settings) as client:
        yield client


async def test_an_abort_that_is_cancelled_ends_the_session(memory_bench: Bench) -> None:
    async with connected(memory_bench) as client:
        upload = client.upload("a")
        await upload.open()
        await upload.write(b"some")
        await upload.flush()
        memory_bench.gates.shut("fail")
        aborting = asyncio.create_task(upload.abort("not needed"))
        await memory_bench.gates.arrival("fail")
        aborting.cancel()
        await asyncio.sleep(0)
        memory_bench.gates.open("fail")
        with pytest.raises(asyncio.CancelledError):
            await aborting
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("tailrace upload ")]
        assert (await last_status(memory_bench.manager, upload.id)).reason == "not needed"


async def test_a_flush_ends_when_the_upload_is_aborted(memory_bench: Bench) -> None:
    async with connected(memory_bench) as client:
        upload = client.upload("a")
        await upload.open()
        memory_bench.gates.shut("checkpoint")
        await upload.write(b"some")
        await memory_bench.gates.arrival("checkpoint")
        # More than one window: its end cannot be sent, and is dropped.
        memory_bench.gates.stored_shown = 0
        await upload.write(b"x" * upload.limits.upload_window)
        flushing = asyncio.create_task(upload.flush())
        await asyncio.sleep(0)
        aborting = asyncio.create_task(upload.abort("not needed"))
        await asyncio.sleep(0)
        memory_bench.gates.open("checkpoint")
        assert await aborting is not None
        async with asyncio.timeout(30):
            with pytest.raises(UploadAborted):
                await flushing


async def test_the_end_is_announced_to_the_uploader(bench: Bench) -> None:
    async with connected(bench) as client:
        for number in range(20):
            upload = client.upload("a")
            await upload.open()
            await upload.write(b"x" * (number + 1))
            flushing = asyncio.create_task(upload.flush())
            await upload.finish()
            assert upload.announced.size == number + 1
            async with asyncio.timeout(30):
                assert (await flushing).size == number + 1


async def test_a_finish_that_is_cancelled_can_be_repeated(memory_bench: Bench) -> None:
    async with connected(memory_bench) as client:
        upload = client.upload("a")
        await upload.open()
        await upload.write(b"some")
        memory_bench.gates.shut("complete")
        finishing = asyncio.create_task(upload.finish())
        await memory_bench.gates.arrival("complete")
        finishing.cancel()
        await asyncio.sleep(0)
        memory_bench.gates.open("complete")
        with pytest.raises(asyncio.CancelledError):
            await finishing
        async with asyncio.timeout(30):
            assert (await upload.finish()).state is ResourceState.COMPLETED


async def test_an_upload_cancelled_at_its_end_fails_as_cancelled(memory_bench: Bench) -> None:
    async with connected(memory_bench) as client:
        memory_bench.gates.shut("checkpoint")
        upload = client.upload("a")
        written = asyncio.Event()

        async def produce() -> None:
            async with upload:
                await upload.write(b"some")
                await memory_bench.gates.arrival("checkpoint")
                # More than one window: the end cannot be sent while nothing is stored.
                memory_bench.gates.stored_shown = 0
                await upload.write(b"x" * upload.limits.upload_window)
                written.set()

        producing = asyncio.create_task(produce())
        await written.wait()
        producing.cancel()
        await asyncio.sleep(0)
        memory_bench.gates.stored_shown = None
        memory_bench.gates.open("checkpoint")
        with pytest.raises(asyncio.CancelledError):
            await producing
        assert (await last_status(memory_bench.manager, upload.id)).reason == "cancelled"


async def some(size: int) -> AsyncGenerator[bytes, None]:
    yield b"some"[:size]


async def test_leaving_after_detaching(memory_bench: Bench) -> None:
    async with connected(memory_bench) as client:
        async with client.upload("a") as upload:
            await upload.write(b"some")
            await upload.detach()
        async with client.resume_upload(ReopenRequest(id=upload.id, token=upload.token, prefix=some)) as again:
            assert again.offset == 4
        assert again.status.state is ResourceState.COMPLETED
