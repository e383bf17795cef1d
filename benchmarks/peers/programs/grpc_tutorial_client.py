"""The client of the tutorials' chunk-streaming service: blocking, generated messages, 3 MiB chunks."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from peers.programs.contents import DATA, LINE, MEBIBYTE, Content, expect, timed_download

messages, services = grpc.protos_and_services("peers/programs/chunk_streaming.proto")

PIECES_PER_CHUNK = 3


def _gathered(size: int) -> Iterator[bytes]:
    left = size // MEBIBYTE
    while left:
        count = min(left, PIECES_PER_CHUNK)
        yield b"".join([DATA] * count)
        left -= count


class Client:
    """Uploads and downloads by blocking calls over one channel."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._stub = services.ChunkStreamingStub(grpc.insecure_channel(f"127.0.0.1:{settings['port']}"))

    def _send(self, chunks: Iterable[bytes], size: int) -> tuple[float, str]:
        name = uuid.uuid4().hex

        def outgoing() -> Iterator[Any]:
            previous = b""
            for data in chunks:
                yield messages.Chunk(name="" if previous else name, data=data, previous_sha1=previous)
                previous = hashlib.sha1(data).digest()

        begin = time.perf_counter()
        summary = self._stub.Upload(outgoing())
        seconds = time.perf_counter() - begin
        expect(summary.size, size)
        return seconds, name

    def _receive(self, name: str, take: Callable[[bytes], object]) -> None:
        previous = b""
        for chunk in self._stub.Download(messages.Request(name=name)):
            if chunk.previous_sha1 != previous:
                raise AssertionError("a chunk is missing")
            data = chunk.data
            previous = hashlib.sha1(data).digest()
            take(data)

    def upload(self, size: int) -> tuple[float, str]:
        """Send chunks of 3 MiB, gathered from pieces of 1 MiB."""
        return self._send(_gathered(size), size)

    def download(self, handle: str, size: int, verify: bool) -> float:
        """Receive chunks and check their chain, which is all that verifying could ask for."""
        return timed_download(lambda take: self._receive(handle, take), size, None)

    def compare(self, handle: str, size: int) -> None:
        """Compare every byte."""
        content = Content()
        self._receive(handle, content.feed)
        content.end(size)

    def lines(self, count: int) -> float:
        """Send each line as a chunk of its own."""
        seconds, name = self._send((LINE for _ in range(count)), count * len(LINE))
        content = Content(LINE)
        self._receive(name, content.feed)
        content.end(count * len(LINE))
        return seconds
