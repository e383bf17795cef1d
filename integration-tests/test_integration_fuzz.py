"""Random and mutated frames at real servers: each is taken or refused with a typed error, and nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import grpc.aio
import pytest
from cells import Transport
from manifest import proves
from server_process import ServerProcess
from soak import SEED, SOAK
from test_integration_overload import peak_memory
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tailrace_common_api import (
    ClientSettings,
    FromOffset,
    LastLines,
    ListFilter,
    Metadata,
    Reporting,
    Settlement,
    Verdict,
    error_classes,
)
from tailrace_impl_common import chunk_hash
from tailrace_impl_common.messages import (
    Abort,
    Chunk,
    ClientMessage,
    CloseContext,
    CreateContext,
    Delete,
    Finish,
    Follow,
    GetContext,
    GetHeads,
    GetStatus,
    List,
    Locate,
    OpenUpload,
    Read,
    ReadLines,
    ReopenUpload,
    Request,
    Watch,
    WatchContext,
    Window,
)
from tailrace_impl_common.record_messages import (
    CommitBulk,
    Credit,
    GetQueue,
    Leave,
    OpenBulk,
    Query,
    RecordBatch,
    Settle,
    Work,
)
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_grpc._call_status import CallStatus
from tailrace_impl_grpc._codec import ANSWERS, CONVERSATIONS, Method, method_of
from tailrace_impl_grpc._error_table import error_from_status
from tailrace_impl_websocket import connect as connect_ws
from tailrace_impl_websocket._binary_frame import frame_of
from tailrace_impl_websocket._codec import encode_from_client

FRAMES = 1_000_000 if SOAK else 10_000
WORKERS = 8
MEBIBYTE = 1024 * 1024
MEMORY_BOUND = 512 * MEBIBYTE
OPTIONS = {
    "upload_grace": 0.5,
    "max_uploads": 1_000,
    "max_contexts": 1_000,
    "retention_failed": 0.0,
    "sweep_interval": 0.2,
}
CODES = {error.code for error in error_classes()} - {"internal"}

_ID = "0" * 32
_DATA = b"twelve bytes"
_MESSAGES: tuple[ClientMessage, ...] = (
    OpenUpload(metadata=Metadata(name="n", lines=True, labels={"k": "v"}), length=12, sha256=bytes(32)),
    OpenUpload(metadata=Metadata(name="n"), idempotency_key="key"),
    ReopenUpload(id=_ID, token="token"),
    Chunk(0, _DATA, chunk_hash(_DATA), b""),
    Chunk(12, _DATA, chunk_hash(_DATA), chunk_hash(_DATA)),
    Finish(12, bytes(16)),
    Abort("reason"),
    Window(1_000),
    Read(id=_ID, start=1, end=5, window=100),
    Read(id=_ID, suffix=5),
    Follow(id=_ID, start=FromOffset(3), window=100),
    Follow(id=_ID, start=LastLines(3)),
    ReadLines(id=_ID, first=1, count=2),
    Watch(id=_ID),
    GetStatus(id=_ID, token="token"),
    GetHeads(id=_ID, sizes=(0, 5)),
    Locate(id=_ID, line=3),
    List(filter=ListFilter(labels={"k": "v"}), limit=5),
    Delete(id=_ID),
    CreateContext(attributes={"k": "v"}),
    GetContext(id=_ID),
    CloseContext(id=_ID),
    WatchContext(id=_ID, after=3),
    OpenBulk(collection="c", idempotency_key="key", reporting=Reporting.ALL, priority=-5),
    RecordBatch([b"{}", _DATA], [None, "key"]),
    CommitBulk(2, bytes(16)),
    Query(source="s", arguments={"text": "x", "number": 1.5, "flag": True, "none": None}, window=100),
    Work(queue="q", records=5, bytes=1_000),
    Credit(sequence=1, records=5, bytes=1_000),
    Settle((Settlement(7, 1, Verdict.REQUEUE, 1.5, "reason"), Settlement(8, 2, Verdict.ACKNOWLEDGE))),
    Leave(),
    GetQueue(queue="q"),
)


def mutated(sample: bytes, chance: random.Random) -> bytes:
    """Return something that is nearly ``sample``, or not at all."""
    data = bytearray(sample)
    for _ in range(chance.randrange(4)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                data[place:place] = chance.randbytes(chance.randrange(8))
            case 2:
                del data[place : place + chance.randrange(1, 8)]
            case 3:
                del data[place:]
            case 4:
                data[place:place] = data[: chance.randrange(64)]
            case _:
                data[place:place] = chance.choice([b"\xff" * 9, b'"', b"{", b"[", b"null", b"1e999", b"-1", b"\\u0000"])
    return bytes(data) if chance.random() > 0.05 else chance.randbytes(chance.randrange(300))


class Count:
    """How many frames are still to be sent, and what became of those that were."""

    def __init__(self) -> None:
        self.left = FRAMES
        self.codes: Counter[str] = Counter()

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0


async def _fuzz_websocket(url: str, seed: int, count: Count) -> None:
    chance = random.Random(seed)
    while count.left > 0:
        async with connect_websocket(
            f"{url}/v1/connect",
            subprotocols=[Subprotocol("tailrace.v1")],
            compression=None,
            max_size=None,
            proxy=None,
            open_timeout=60,
            ping_timeout=60,
        ) as websocket:
            try:
                for number in itertools.count(1):
                    if not count.take():
                        return
                    message = chance.choice(_MESSAGES)
                    if isinstance(message, Chunk | RecordBatch):
                        await websocket.send(mutated(frame_of(number, message), chance))
                    else:
                        await websocket.send(mutated(encode_from_client(number, message).encode(), chance), text=True)
                    await _see_what_it_was(websocket, count)
            except ConnectionClosed:
                # For the frame before, as it was told.
                continue


async def _see_what_it_was(websocket: ClientConnection, count: Count) -> None:
    """Wait until the frame before was processed; a connection that ends for it must have been told why."""
    told = False
    try:
        await websocket.send('{"type":"ping"}')
        while (message := json.loads(await websocket.recv()))["type"] != "pong":
            if message["type"] == "error":
                told = told or message.get("request") is None
                count.codes[message["code"]] += 1
    except ConnectionClosed:
        assert told
        raise


def _same(data: bytes) -> bytes:
    return data


async def _fuzz_grpc(url: str, seed: int, count: Count) -> None:
    chance = random.Random(seed)
    bodies = [(method_of(m) if isinstance(m, Request) else None, m) for m in _MESSAGES]
    async with grpc.aio.insecure_channel(urlsplit(url).netloc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        while count.take():
            method, message = chance.choice(bodies)
            if method is None:
                method = chance.choice(tuple(CONVERSATIONS))
                body = chance.randbytes(chance.randrange(100))
            else:
                body = mutated(method.encode_request(message), chance)
            if method in ANSWERS:
                call: grpc.aio.Call = channel.unary_unary(method.path, _same, _same)(body)
            elif method in CONVERSATIONS:
                call = channel.stream_stream(method.path, _same, _same)()
            else:
                call = channel.unary_stream(method.path, _same, _same)(body)
            status = CallStatus(call)
            if method in CONVERSATIONS:
                await _say(call, body, chance)
            error = await _status_of(call, method, status)
            if error is not None:
                metadata = error.trailing_metadata() or ()
                refusal = error_from_status(error.code(), error.details() or "", metadata, address="the server")
                count.codes[refusal.code] += 1


async def _say(call: object, body: bytes, chance: random.Random) -> None:
    try:
        await call.write(body)  # type: ignore[attr-defined]  # a stream-stream call
        if chance.random() < 0.5:
            await call.write(mutated(body, chance))  # type: ignore[attr-defined]  # the same
        await call.done_writing()  # type: ignore[attr-defined]  # the same
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        # Refused already; the status says why.
        pass


async def _status_of(call: object, method: Method, status: CallStatus) -> grpc.aio.AioRpcError | None:
    """Return the status with which a call has failed; ``None`` if it has not."""
    try:
        if method in ANSWERS:
            await call  # type: ignore[misc]  # a unary call can be awaited
        else:
            async for _ in call:  # type: ignore[attr-defined]  # a call that streams
                pass
    except grpc.aio.AioRpcError as error:
        return await status.behind(error)
    return None


@proves("CON-2", "CON-4")
@pytest.mark.timeout(3600 if SOAK else 400)
@pytest.mark.parametrize("transport", [Transport.GRPC, Transport.WEBSOCKET], ids=lambda transport: transport.value)
async def test_random_and_mutated_frames_are_refused_with_typed_errors(transport: Transport, tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", tmp_path, OPTIONS)
    await asyncio.to_thread(server.start)
    try:
        url = server.url(transport)
        connect = connect_grpc if transport is Transport.GRPC else connect_ws
        fuzz = _fuzz_grpc if transport is Transport.GRPC else _fuzz_websocket
        count = Count()
        async with connect(url, ClientSettings(reconnect_timeout=0)) as honest:
            async with honest.upload("beside", lines=True) as upload, asyncio.TaskGroup() as group:
                for worker in range(WORKERS):
                    group.create_task(fuzz(url, 1000 * SEED + worker, count))
                while count.left > 0:
                    await upload.write(b"a line\n")
                    await upload.flush()
                    await asyncio.sleep(0.01)
            assert upload.status.size == upload.offset
        peak = peak_memory(server.pid)
        print(f"{FRAMES} frames, server {peak // MEBIBYTE} MiB, {dict(count.codes)}")
        assert set(count.codes) <= CODES
        assert len(count.codes) > 3
        assert peak < MEMORY_BOUND
        assert "Traceback" not in server.log, server.log[-2000:]
        assert await asyncio.to_thread(server.stop) == 0
    finally:
        await asyncio.to_thread(server.dispose)
