"""Clients that mean harm, in a process of their own: ``python hostile_clients.py GRPC WS HTTP ID SCALE``.

They print a line ``refused`` when each of :data:`TYPED` has been turned away, however long that takes. They go on until
standard input ends, and then print how often each was turned away, by the code of the error: JSON on one line. What
ended without any error that can be told apart is counted as ``untyped``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import grpc
import grpc.aio
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tailrace_common_api import ClientSettings, FromOffset, TailraceError
from tailrace_impl_common import ConnectedClient
from tailrace_impl_common.messages import Follow
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_grpc._call_status import CallStatus
from tailrace_impl_grpc._codec import ANSWERS, CONVERSATIONS, method_of
from tailrace_impl_grpc._error_table import error_from_status
from tailrace_impl_websocket import connect as connect_ws

MEBIBYTE = 1024 * 1024
_SETTINGS = ClientSettings(reconnect_timeout=0)

TYPED = frozenset(
    {"endless over gRPC", "endless over WebSocket", "long headers", "garbage over WebSocket", "garbage over gRPC"}
)
"""Attacks that end with an error which can be told apart."""

refused: dict[str, Counter[str]] = {}
"""Codes of refusals, by attack."""


def note(attack: str, code: str) -> None:
    """Count a refusal."""
    if attack not in refused:
        refused[attack] = Counter()
        if attack in TYPED and refused.keys() >= TYPED:
            print("refused", flush=True)
    refused[attack][code] += 1


async def upload_for_ever(client: ConnectedClient, attack: str) -> None:
    """Send as fast as the server takes it, until it takes no more; then begin anew."""
    data = random.randbytes(MEBIBYTE)
    while True:
        try:
            async with client.upload("endless") as upload:
                while True:
                    await upload.write(data)
        except TailraceError as error:
            note(attack, error.code)
            # What refuses the next one at once must not become a busy loop of ours.
            await asyncio.sleep(0.05)


async def stall_over_websocket(url: str, id: str, requests: int) -> None:
    """Ask for everything many times, and read nothing."""
    async with _websocket(url, max_queue=1) as websocket:
        for number in range(1, requests + 1):
            await websocket.send(json.dumps({"type": "follow", "request": number, "id": id, "window": 16 * MEBIBYTE}))
        await asyncio.Event().wait()


async def stall_over_grpc(url: str, id: str, requests: int) -> None:
    """The same over gRPC."""
    request = Follow(id=id, start=FromOffset(0))
    method = method_of(request)
    async with _channel(url) as channel:
        calls = [channel.stream_stream(method.path, _same, _same)() for _ in range(requests)]
        for call in calls:
            await call.write(method.encode_request(request))
        await asyncio.Event().wait()


async def dribble(url: str) -> None:
    """Send a request so slowly that it never ends."""
    parts = urlsplit(url)
    while True:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            for byte in b"GET /r/x HTTP/1.1\r\nX-Slow: " + b"a" * 10_000:
                writer.write(bytes([byte]))
                await writer.drain()
                if reader.at_eof():
                    break
                await asyncio.sleep(0.3)
        except ConnectionError:
            pass
        finally:
            note("dribble", "closed")
            writer.transport.abort()


async def send_long_headers(url: str) -> None:
    """Send headers without an end."""
    parts = urlsplit(url)
    while True:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        answer = b""
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET /r/x HTTP/1.1\r\nX-Long: " + b"a" * MEBIBYTE)
            answer = await reader.read()
        writer.transport.abort()
        with contextlib.suppress(ValueError):
            note("long headers", json.loads(answer.partition(b"\r\n\r\n")[2])["code"])
        await asyncio.sleep(0.05)


_DEEP = "[" * 100_000 + "]" * 100_000


def _frames(random_: random.Random) -> list[str | bytes]:
    """Return frames that no client would send."""
    return [
        "",
        "{",
        _DEEP,
        '{"type":"status","request":1,"id":' + _DEEP + "}",
        '{"type":"status","request":1e400,"id":"x"}',
        '{"type":"upload","request":1,"metadata":{"name":"' + "n" * 2 * MEBIBYTE + '"}}',
        json.dumps({"type": "finish", "request": 77, "size": 0, "head": "0" * 32}),
        json.dumps({"type": "no such thing", "request": 5}),
        random_.randbytes(200),
        bytes(5 * MEBIBYTE),
        bytes(9 * MEBIBYTE),
    ]


async def send_garbage_over_websocket(url: str) -> None:
    """Send one bad frame a connection, and see what comes back."""
    random_ = random.Random(7)
    task = asyncio.current_task()
    assert task is not None
    while True:
        for frame in _frames(random_):
            code = "untyped"
            try:
                async with _websocket(url) as websocket:
                    await websocket.recv()
                    await websocket.send(frame)
                    async for answer in websocket:
                        message = json.loads(answer)
                        if message["type"] == "error":
                            code = message["code"]
                            break
            except InvalidStatus as error:
                code = json.loads(error.response.body or b"{}").get("code", "untyped")
            except (ConnectionClosed, OSError, EOFError, AttributeError):
                # The last is the library's own, when it ends a connection that is gone in the middle of a large frame.
                pass
            if task.cancelling():
                # The library has ended the connection with an error of its own in place of the cancellation.
                raise asyncio.CancelledError
            note("garbage over WebSocket", code)


async def send_garbage_over_grpc(url: str) -> None:
    """Send what is no message to every method."""
    random_ = random.Random(8)
    bodies = [
        b"\xff" * 50,
        random_.randbytes(1_000),
        bytes(5 * MEBIBYTE),
        bytes(9 * MEBIBYTE),
        b"\x0a\xff\xff\xff\xff\x0f",
    ]
    async with _channel(url) as channel:
        while True:
            for body in bodies:
                for method in CONVERSATIONS:
                    call = channel.stream_stream(method.path, _same, _same)()
                    await _see(call, body)
                for method in ANSWERS:
                    await _see_unary(channel.unary_unary(method.path, _same, _same)(body))
                long = channel.unary_unary(ANSWERS[0].path, _same, _same)(b"", metadata=(("x-long", "a" * 100_000),))
                await _see_unary(long)


async def _see(call: grpc.aio.StreamStreamCall[bytes, bytes], body: bytes) -> None:
    status = CallStatus(call)
    task = asyncio.current_task()
    assert task is not None
    try:
        await call.write(body)
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
        note("garbage over gRPC", "untyped")
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        if task.cancelling():
            # The library has cancelled the call, and ended the write with an error of its own; no status may follow.
            raise asyncio.CancelledError from None
        # A write that has failed hides the status of the call.
        ended = await status.known()
        _note_status(ended.code(), ended.details(), ended.trailing_metadata())


async def _see_unary(call: grpc.aio.UnaryUnaryCall[bytes, bytes]) -> None:
    try:
        await call
        note("garbage over gRPC", "answered")
    except grpc.aio.AioRpcError as error:
        _note_status(error.code(), error.details(), error.trailing_metadata())


def _note_status(code: grpc.StatusCode, details: str | None, metadata: object) -> None:
    error = error_from_status(code, details or "", metadata or (), address="server")  # type: ignore[arg-type]  # as it came
    note("garbage over gRPC", error.code)


def _websocket(url: str, *, max_queue: int = 16) -> connect_websocket:
    return connect_websocket(
        url + "/v1/connect",
        subprotocols=[Subprotocol("tailrace.v1")],
        compression=None,
        max_size=None,
        max_queue=max_queue,
        ping_interval=None,
        proxy=None,
        open_timeout=30,
    )


def _same(data: bytes) -> bytes:
    return data


def _channel(url: str) -> grpc.aio.Channel:
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        # Else a client that reads nothing would still take megabytes for each call.
        ("grpc.http2.bdp_probe", 0),
    ]
    return grpc.aio.insecure_channel(urlsplit(url).netloc, options)


async def _persist(attack: Callable[[], Awaitable[None]]) -> None:
    """Begin an attack anew when the server has ended it."""
    while True:
        with contextlib.suppress(OSError, ConnectionClosed, InvalidStatus, EOFError, grpc.aio.BaseError, TailraceError):
            await attack()
        await asyncio.sleep(0.1)


async def main(grpc_url: str, ws_url: str, http_url: str, id: str, scale: int) -> None:
    """Attack until standard input ends."""
    over_grpc, over_ws = connect_grpc(grpc_url, _SETTINGS), connect_ws(ws_url, _SETTINGS)
    attacks: list[Callable[[], Awaitable[None]]] = []
    for _ in range(2 * scale):
        attacks.append(lambda: upload_for_ever(over_grpc, "endless over gRPC"))
        attacks.append(lambda: upload_for_ever(over_ws, "endless over WebSocket"))
    for _ in range(5 * scale):
        attacks.append(lambda: stall_over_grpc(grpc_url, id, 10))
        attacks.append(lambda: stall_over_websocket(ws_url, id, 10))
    for _ in range(10 * scale):
        attacks.append(lambda: dribble(http_url))
        attacks.append(lambda: dribble(grpc_url))
    attacks.append(lambda: send_long_headers(http_url))
    attacks.append(lambda: send_garbage_over_websocket(ws_url))
    attacks.append(lambda: send_garbage_over_grpc(grpc_url))
    tasks = [asyncio.create_task(_persist(attack)) for attack in attacks]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await over_grpc.close()
    await over_ws.close()
    print(json.dumps(refused), flush=True)


if __name__ == "__main__":
    urls = sys.argv[1:4]
    asyncio.run(main(urls[0], urls[1], urls[2], sys.argv[4], int(sys.argv[5])))
