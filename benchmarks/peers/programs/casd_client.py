"""A client of ByteStream, the protocol of content-addressed stores, with the generated code that BuildStream has."""

from __future__ import annotations

import hashlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
from buildstream._protos.google.bytestream import bytestream_pb2 as messages
from buildstream._protos.google.bytestream import bytestream_pb2_grpc as services

from peers.programs.contents import DATA, LINE, Content, expect, hash_of, timed_download


class Client:
    """Writes and reads blobs by blocking calls.

    The store knows a blob by its SHA-256, and takes none that it has: each upload begins with bytes of its own.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._stub = services.ByteStreamStub(grpc.insecure_channel(f"127.0.0.1:{settings['port']}"))
        self._beginnings: dict[str, bytes] = {}

    def _write(self, beginning: bytes, unit: bytes, size: int) -> tuple[float, str]:
        """Send pieces of the length of ``unit``, the first of which begins with something else."""

        def parts() -> Iterable[bytes]:
            return itertools.chain([first], itertools.repeat(unit, size // len(unit) - 1))

        def requests() -> Iterator[Any]:
            offset = 0
            for data in parts():
                end = offset + len(data)
                yield messages.WriteRequest(
                    resource_name="" if offset else f"uploads/{uuid.uuid4()}/blobs/{digest}/{size}",
                    write_offset=offset,
                    data=data,
                    finish_write=end == size,
                )
                offset = end

        first = beginning + unit[len(beginning) :]
        begin = time.perf_counter()
        # The name of a blob is its hash, so that nothing can be sent before everything is known.
        hasher = hashlib.sha256()
        for data in parts():
            hasher.update(data)
        digest = hasher.hexdigest()
        answer = self._stub.Write(requests())
        seconds = time.perf_counter() - begin
        expect(answer.committed_size, size)
        self._beginnings[digest] = first
        return seconds, digest

    def upload(self, size: int) -> tuple[float, str]:
        """Write a blob in messages of 1 MiB."""
        return self._write(uuid.uuid4().bytes, DATA, size)

    def _read(self, digest: str, size: int, take: Callable[[bytes], object]) -> None:
        for response in self._stub.Read(messages.ReadRequest(resource_name=f"blobs/{digest}/{size}")):
            take(response.data)

    def download(self, handle: str, size: int, verify: bool) -> float:
        """Read a blob in the messages that the server chooses."""
        digest = hash_of(size, self._beginnings[handle]) if verify else None
        return timed_download(lambda take: self._read(handle, size, take), size, digest)

    def compare(self, handle: str, size: int, unit: bytes = DATA) -> None:
        """Compare every byte."""
        beginning = Content(self._beginnings[handle])
        content = Content(unit)

        def take(data: bytes) -> None:
            head = data[: max(0, len(unit) - beginning.received)]
            beginning.feed(head)
            content.feed(data[len(head) :])

        self._read(handle, size, take)
        beginning.end(len(unit))
        content.end(size - len(unit))

    def lines(self, count: int) -> float:
        """Write a blob, each line in a message of its own."""
        size = count * len(LINE)
        seconds, digest = self._write(uuid.uuid4().hex.encode(), LINE, size)
        self.compare(digest, size, LINE)
        return seconds
