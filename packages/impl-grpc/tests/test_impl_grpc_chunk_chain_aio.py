"""The chunk chain on a service that is not Tailrace's, over ``grpc.aio``."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio
import pytest
from impl_grpc_foreign import parcels_pb2_grpc as parcels
from impl_grpc_foreign.parcels_pb2 import Order, Part, Receipt
from impl_grpc_parcels import CHUNK, CONTENT, FAULTS, SIZES, build, read

from tailrace_common_api import IntegrityError, InvalidArgument
from tailrace_impl_common import Source
from tailrace_impl_grpc._poller import keep_poller
from tailrace_impl_grpc.chunk_chain.aio import ChunkChain

if TYPE_CHECKING:
    ParcelsStub = parcels.ParcelsAsyncStub

PARTS = ChunkChain(build=build, read=read, chunk_size=CHUNK)
Context = grpc.aio.ServicerContext[Part, Receipt]


class FaultyChain(ChunkChain[Part]):
    """Sends what a fault makes of a transfer."""

    def __init__(self, fault: str) -> None:
        super().__init__(build=build, read=read, chunk_size=CHUNK)
        self._fault = FAULTS[fault]

    async def messages(self, source: Source) -> AsyncGenerator[Part, None]:
        for message in self._fault([message async for message in super().messages(source)]):
            yield message


class Warehouse:
    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.left = asyncio.Event()

    async def Put(self, request_iterator: AsyncIterator[Part], context: Context) -> Receipt:  # noqa: N802 - the RPC's name
        file = io.BytesIO()
        try:
            size = await PARTS.accept(request_iterator, file, context)
        finally:
            self.received.put_nowait(file.getvalue())
        return Receipt(size=size)

    async def Get(self, request: Order, context: Context) -> AsyncIterator[Part]:  # noqa: N802 - the RPC's name
        if request.name in FAULTS:
            async for part in FaultyChain(request.name).messages(CONTENT):
                yield part
        elif request.name == "endless":
            try:
                for part in [part async for part in PARTS.messages(CONTENT)][1:3]:
                    yield part
                while True:
                    yield build(b"x", b"y")
            finally:
                self.left.set()
        else:
            async for part in PARTS.messages(CONTENT[: int(request.name)]):
                yield part


@pytest.fixture
async def warehouse(no_task_is_left: None) -> Warehouse:
    return Warehouse()


@pytest.fixture
async def stub(warehouse: Warehouse) -> AsyncIterator[ParcelsStub]:
    keep_poller()
    server = grpc.aio.server()
    parcels.add_ParcelsServicer_to_server(cast("parcels.ParcelsServicer", warehouse), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield cast("ParcelsStub", parcels.ParcelsStub(channel))
    await server.stop(None)


async def in_pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 700):
        yield content[start : start + 700]
        yield b""


@pytest.mark.parametrize("size", SIZES)
async def test_content_of_any_size_arrives(stub: ParcelsStub, warehouse: Warehouse, size: int, tmp_path: Path) -> None:
    content = CONTENT[:size]
    sources: list[Source] = [content, io.BytesIO(content), iter([content[:7], content[7:]]), in_pieces(content)]
    for source in sources:
        assert await PARTS.upload(stub.Put, source) == Receipt(size=size)
    assert [await warehouse.received.get() for _ in range(4)] == [content] * 4
    with (tmp_path / "file").open("wb") as file:
        assert await PARTS.download(stub.Get(Order(name=str(size))), file) == size
    assert (tmp_path / "file").read_bytes() == content
    pieces: list[bytes] = []

    async def slow(data: bytes) -> None:
        await asyncio.sleep(0)
        pieces.append(data)

    await PARTS.download(stub.Get(Order(name=str(size))), slow)
    assert b"".join(pieces) == content
    assert b"".join([piece async for piece in PARTS.pieces(stub.Get(Order(name=str(size))))]) == content


async def test_larger_chunks_fit(stub: ParcelsStub, warehouse: Warehouse) -> None:
    chain = ChunkChain(build=build, read=read)
    content = bytes(3_000_000)
    assert (await chain.upload(stub.Put, content, timeout=30.0, metadata=(("key", "value"),))).size == len(content)
    assert await warehouse.received.get() == content


@pytest.mark.parametrize("fault", FAULTS)
async def test_faults_on_the_way_up_are_refused_by_the_server(
    stub: ParcelsStub, warehouse: Warehouse, fault: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        await FaultyChain(fault).upload(stub.Put, CONTENT)
    cause = caught.value.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    assert cause.code() is grpc.StatusCode.DATA_LOSS
    assert await warehouse.received.get() == CONTENT[: caught.value.offset]


@pytest.mark.parametrize("fault", FAULTS)
async def test_faults_on_the_way_down_are_refused_by_the_client(stub: ParcelsStub, fault: str) -> None:
    file = io.BytesIO()
    with pytest.raises(IntegrityError) as caught:
        await PARTS.download(stub.Get(Order(name=fault)), file)
    assert file.getvalue() == CONTENT[: caught.value.offset]


async def test_a_bad_chunk_ends_the_upload_of_an_endless_source(stub: ParcelsStub) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"some bytes"

    class Faulty(ChunkChain[Part]):
        async def messages(self, source: Source) -> AsyncGenerator[Part, None]:
            number = 0
            async for message in super().messages(source):
                number += 1
                if number != 3:
                    yield message

    with pytest.raises(IntegrityError):
        await Faulty(build=build, read=read).upload(stub.Put, endless())


async def test_a_bad_chunk_ends_the_upload_of_a_source_that_has_nothing_more(stub: ParcelsStub) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield CONTENT
        await asyncio.Event().wait()

    class Faulty(ChunkChain[Part]):
        async def messages(self, source: Source) -> AsyncGenerator[Part, None]:
            first = True
            async for message in super().messages(source):
                if not first:
                    yield message
                first = False

    with pytest.raises(IntegrityError):
        await Faulty(build=build, read=read, chunk_size=CHUNK).upload(stub.Put, stalling())


async def test_a_bad_chunk_ends_an_endless_download_on_both_sides(stub: ParcelsStub, warehouse: Warehouse) -> None:
    call = stub.Get(Order(name="endless"))
    with pytest.raises(IntegrityError):
        await PARTS.download(call, io.BytesIO())
    assert call.cancelled()
    await warehouse.left.wait()


async def test_a_source_that_fails_ends_the_upload_with_its_error(stub: ParcelsStub) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * CHUNK * 2
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        await PARTS.upload(stub.Put, failing())
    with pytest.raises(InvalidArgument):
        await PARTS.upload(stub.Put, "text")  # type: ignore[arg-type]  # what a user without types may do


async def test_a_sink_that_fails_ends_the_download_with_its_error(stub: ParcelsStub) -> None:
    def failing(_data: bytes) -> None:
        raise OSError("disk full")

    call = stub.Get(Order(name=str(len(CONTENT))))
    with pytest.raises(OSError, match="disk full"):
        await PARTS.download(call, failing)
    assert call.done()


async def test_cancelling_an_upload_cancels_the_call(stub: ParcelsStub, warehouse: Warehouse) -> None:
    started = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield CONTENT
        started.set()
        await asyncio.Event().wait()

    uploading = asyncio.ensure_future(PARTS.upload(stub.Put, stalling()))
    await started.wait()
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading


async def test_other_failures_of_a_call_stay_what_they_are() -> None:
    keep_poller()
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        stub = cast("ParcelsStub", parcels.ParcelsStub(channel))
        with pytest.raises(grpc.aio.AioRpcError):
            await PARTS.upload(stub.Put, CONTENT)
        with pytest.raises(grpc.aio.AioRpcError):
            await PARTS.download(stub.Get(Order(name="1")), io.BytesIO())
