"""The client of Arrow Flight: batches of 1 MiB by do_put and do_get."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from pyarrow import flight
from xxhash import xxh3_128

from peers.programs.contents import DATA, LINE, Content, expect, pieces, timed_download
from peers.programs.flight_server import SCHEMA, batch_of, bytes_of, delete


class Client:
    """Uploads and downloads over one connection, hashing what it moves where the server does too."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._client = flight.connect(f"grpc://127.0.0.1:{settings['port']}")
        self._hashes: bool = settings["hashes"]

    def _send(self, parts: Iterable[bytes], size: int) -> tuple[float, str]:
        name = uuid.uuid4().hex
        begin = time.perf_counter()
        writer, answers = self._client.do_put(flight.FlightDescriptor.for_path(name), SCHEMA)
        hasher = xxh3_128()
        for data in parts:
            if self._hashes:
                hasher.update(data)
            writer.write_batch(batch_of(data))
        if self._hashes:
            writer.write_metadata(pa.py_buffer(hasher.digest()))
        writer.done_writing()
        answer = answers.read()
        writer.close()
        seconds = time.perf_counter() - begin
        if answer is None:
            raise AssertionError("the server does not say what it has")
        expect(int.from_bytes(answer.to_pybytes(), "big"), size)
        return seconds, name

    def _receive(self, handle: str, take: Callable[[memoryview], object]) -> None:
        hasher = xxh3_128()
        for chunk in self._client.do_get(flight.Ticket(handle.encode())):
            data = bytes_of(chunk.data)
            if self._hashes:
                hasher.update(data)
            take(data)
            if chunk.app_metadata is not None and chunk.app_metadata.to_pybytes() != hasher.digest():
                raise AssertionError("what arrived has another hash than what was stored")

    def upload(self, size: int) -> tuple[float, str]:
        """Send batches of 1 MiB."""
        return self._send(pieces(size), size)

    def download(self, handle: str, size: int, verify: bool) -> float:
        """Receive batches of 1 MiB, and check their hash if there is one: a server that counts has none."""
        return timed_download(lambda take: self._receive(handle, take), size, None)

    def compare(self, handle: str, size: int) -> None:
        """Compare every byte."""
        content = Content(DATA)
        self._receive(handle, content.feed)
        content.end(size)

    def lines(self, count: int) -> float:
        """Send each line as a batch of its own."""
        seconds, handle = self._send((LINE for _ in range(count)), count * len(LINE))
        content = Content(LINE)
        self._receive(handle, content.feed)
        content.end(count * len(LINE))
        self.delete(handle)
        return seconds

    def delete(self, handle: str) -> None:
        """Remove an upload."""
        delete(self._client, handle)
