"""The chunk chain on a service that is not Tailrace's, over gRPC's blocking API."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from impl_grpc_foreign import parcels_pb2_grpc as parcels
from impl_grpc_foreign.parcels_pb2 import Order, Part, Receipt
from impl_grpc_parcels import CHUNK, CONTENT, FAULTS, SIZES, build, read

from tailrace_common_api import IntegrityError, InvalidArgument
from tailrace_impl_common import BlockingSource
from tailrace_impl_grpc.chunk_chain import ChunkChain

PARTS = ChunkChain(build=build, read=read, chunk_size=CHUNK)


class FaultyChain(ChunkChain[Part]):
    """Sends what a fault makes of a transfer."""

    def __init__(self, fault: str) -> None:
        super().__init__(build=build, read=read, chunk_size=CHUNK)
        self._fault = FAULTS[fault]

    def messages(self, source: BlockingSource) -> Generator[Part, None, None]:
        yield from self._fault(list(super().messages(source)))


class Warehouse(parcels.ParcelsServicer):
    def __init__(self) -> None:
        self.received: queue.Queue[bytes] = queue.Queue()
        self.left = threading.Event()

    def Put(self, request_iterator: Iterator[Part], context: grpc.ServicerContext) -> Receipt:  # noqa: N802 - the RPC's name
        file = io.BytesIO()
        try:
            size = PARTS.accept(request_iterator, file, context)
        finally:
            self.received.put(file.getvalue())
        return Receipt(size=size)

    def Get(self, request: Order, context: grpc.ServicerContext) -> Iterator[Part]:  # noqa: N802 - the RPC's name
        if request.name in FAULTS:
            return FaultyChain(request.name).messages(CONTENT)
        if request.name == "endless":
            return self._endless()
        return PARTS.messages(CONTENT[: int(request.name)])

    def _endless(self) -> Iterator[Part]:
        try:
            yield from list(PARTS.messages(CONTENT))[1:3]
            while True:
                yield build(b"x", b"y")
        finally:
            self.left.set()


@pytest.fixture
def warehouse() -> Warehouse:
    return Warehouse()


@pytest.fixture
def stub(warehouse: Warehouse) -> Iterator[parcels.ParcelsStub]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        parcels.add_ParcelsServicer_to_server(warehouse, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield parcels.ParcelsStub(channel)
        server.stop(None).wait()


@pytest.mark.parametrize("size", SIZES)
def test_content_of_any_size_arrives(
    stub: parcels.ParcelsStub, warehouse: Warehouse, size: int, tmp_path: Path
) -> None:
    content = CONTENT[:size]
    sources: list[BlockingSource] = [content, io.BytesIO(content), iter([content[:7], b"", content[7:]])]
    for source in sources:
        assert PARTS.upload(stub.Put, source) == Receipt(size=size)
    assert [warehouse.received.get() for _ in range(3)] == [content] * 3
    pieces: list[bytes] = []
    assert PARTS.download(stub.Get(Order(name=str(size))), pieces.append) == size
    assert b"".join(pieces) == content
    with (tmp_path / "file").open("wb") as file:
        PARTS.download(stub.Get(Order(name=str(size))), file)
    assert (tmp_path / "file").read_bytes() == content
    assert b"".join(PARTS.pieces(stub.Get(Order(name=str(size))))) == content


def test_larger_chunks_than_the_default_message_fit(stub: parcels.ParcelsStub, warehouse: Warehouse) -> None:
    chain = ChunkChain(build=build, read=read)
    content = bytes(3_000_000)
    assert chain.upload(stub.Put, content, timeout=30.0, metadata=(("key", "value"),)).size == len(content)
    assert warehouse.received.get() == content


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_on_the_way_up_are_refused_by_the_server(
    stub: parcels.ParcelsStub, warehouse: Warehouse, fault: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        FaultyChain(fault).upload(stub.Put, CONTENT)
    cause: Any = caught.value.__cause__
    assert isinstance(cause, grpc.RpcError)
    assert cause.code() is grpc.StatusCode.DATA_LOSS
    assert warehouse.received.get() == CONTENT[: caught.value.offset]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_on_the_way_down_are_refused_by_the_client(stub: parcels.ParcelsStub, fault: str) -> None:
    file = io.BytesIO()
    call = stub.Get(Order(name=fault))
    with pytest.raises(IntegrityError) as caught:
        PARTS.download(call, file)
    assert file.getvalue() == CONTENT[: caught.value.offset]


@pytest.mark.parametrize("fault", ["one lost", "one repeated", "last lost"])
def test_chunks_that_look_alike_are_told_apart(stub: parcels.ParcelsStub, fault: str) -> None:
    with pytest.raises(IntegrityError):
        FaultyChain(fault).upload(stub.Put, bytes(5 * CHUNK))


def test_a_bad_chunk_ends_the_upload_of_an_endless_source(stub: parcels.ParcelsStub) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"some bytes"

    class Faulty(ChunkChain[Part]):
        def messages(self, source: BlockingSource) -> Generator[Part, None, None]:
            for number, message in enumerate(super().messages(source)):
                if number != 3:
                    yield message

    with pytest.raises(IntegrityError):
        Faulty(build=build, read=read).upload(stub.Put, endless())


def test_a_bad_chunk_ends_the_upload_of_a_source_that_has_nothing_more(stub: parcels.ParcelsStub) -> None:
    never = threading.Event()

    def stalling() -> Iterator[bytes]:
        yield CONTENT
        never.wait()

    class Faulty(ChunkChain[Part]):
        def messages(self, source: BlockingSource) -> Generator[Part, None, None]:
            messages = super().messages(source)
            next(messages)
            yield from messages

    with pytest.raises(IntegrityError):
        Faulty(build=build, read=read, chunk_size=CHUNK).upload(stub.Put, stalling())
    never.set()


def test_a_bad_chunk_ends_an_endless_download_on_both_sides(stub: parcels.ParcelsStub, warehouse: Warehouse) -> None:
    call = stub.Get(Order(name="endless"))
    with pytest.raises(IntegrityError):
        PARTS.download(call, io.BytesIO())
    assert call.code() is grpc.StatusCode.CANCELLED
    assert warehouse.left.wait(30)


def test_a_source_that_fails_ends_the_upload_with_its_error(stub: parcels.ParcelsStub, warehouse: Warehouse) -> None:
    def failing() -> Iterator[bytes]:
        yield b"x" * CHUNK * 2
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        PARTS.upload(stub.Put, failing())
    with pytest.raises(InvalidArgument):
        PARTS.upload(stub.Put, "text")  # type: ignore[arg-type]  # what a user without types may do


def test_a_sink_that_fails_ends_the_download_with_its_error(stub: parcels.ParcelsStub) -> None:
    def failing(_data: bytes) -> None:
        raise OSError("disk full")

    call = stub.Get(Order(name=str(len(CONTENT))))
    with pytest.raises(OSError, match="disk full"):
        PARTS.download(call, failing)
    assert call.code() is grpc.StatusCode.CANCELLED


def test_other_failures_of_a_call_stay_what_they_are() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        stub = parcels.ParcelsStub(channel)
        with pytest.raises(grpc.RpcError):
            PARTS.upload(stub.Put, CONTENT)
        with pytest.raises(grpc.RpcError):
            PARTS.download(stub.Get(Order(name="1")), io.BytesIO())


def test_reading_part_of_a_transfer_cancels_the_call(stub: parcels.ParcelsStub) -> None:
    call = stub.Get(Order(name=str(len(CONTENT))))
    pieces = PARTS.pieces(call)
    assert next(pieces) == CONTENT[:CHUNK]
    pieces.close()
    assert call.code() is grpc.StatusCode.CANCELLED


def test_transfers_work_without_grpc() -> None:
    messages: Iterable[Part] = list(PARTS.messages(CONTENT))
    assert b"".join(PARTS.pieces(messages)) == CONTENT
    assert [len(message.before) for message in messages] == [0, *[8] * 6]
