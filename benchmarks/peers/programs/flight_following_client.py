"""The client of Arrow Flight where uploads are followed: each batch has a hash, and what is stored is announced."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from pyarrow import flight
from xxhash import xxh3_128

from peers.programs.contents import DATA, LINE, Content, expect, pieces
from peers.programs.flight_server import ENTRY, SCHEMA, batch_of, bytes_of, delete

_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
"""Without it two clients of a process share one."""


class _Upload:
    """Sends batches, and keeps each until it is announced: it may have to be sent again."""

    def __init__(self, client: Any, name: str) -> None:
        self._writer, self._answers = client.do_put(flight.FlightDescriptor.for_path(name), SCHEMA)
        self._hasher = xxh3_128()
        self._size = 0
        self._unannounced: deque[tuple[int, bytes, bytes]] = deque()
        self._announced = 0, self._hasher.digest()
        self._problem: Exception | None = None
        # Whoever gives up ends the program, and need not wait for the server's last word.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        try:
            while (answer := self._answers.read()) is not None:
                size, digest = ENTRY.unpack(answer.to_pybytes())
                while self._unannounced and self._unannounced[0][0] <= size:
                    end, expected, _ = self._unannounced.popleft()
                    if end == size and expected != digest:
                        raise AssertionError("what is stored has another hash than what was sent")
                self._announced = size, digest
        except Exception as error:  # noqa: BLE001  # whoever waits for the end is told
            self._problem = error

    def write(self, data: bytes) -> None:
        """Send a batch with the hash of all bytes up to its end."""
        self._hasher.update(data)
        self._size += len(data)
        digest = self._hasher.digest()
        self._unannounced.append((self._size, digest, data))
        self._writer.write_with_metadata(batch_of(data), pa.py_buffer(digest))

    def end(self, size: int) -> None:
        """Wait until everything is stored and synced."""
        self._writer.done_writing()
        self._listener.join()
        if self._problem is not None:
            raise self._problem
        self._writer.close()
        stored, digest = self._announced
        expect(stored, size)
        if digest != self._hasher.digest():
            raise AssertionError("what is stored has another hash than what was sent")


class Client:
    """Uploads over one connection and follows over another."""

    def __init__(self, settings: dict[str, Any]) -> None:
        location = f"grpc://127.0.0.1:{settings['port']}"
        self._client = flight.connect(location, generic_options=_OWN_CONNECTION)
        self._reader = flight.connect(location, generic_options=_OWN_CONNECTION)

    def _send(self, name: str, parts: Iterable[bytes], size: int) -> None:
        upload = _Upload(self._client, name)
        for data in parts:
            upload.write(data)
        upload.end(size)

    def _follow(self, name: str) -> Iterator[memoryview]:
        """Yield what is stored as it comes, compared with the hash of all bytes up to the end of each batch."""
        hasher = xxh3_128()
        for chunk in self._reader.do_get(flight.Ticket(name.encode())):
            data = bytes_of(chunk.data)
            hasher.update(data)
            if chunk.app_metadata.to_pybytes() != hasher.digest():
                raise AssertionError("what arrived has another hash than what was stored")
            yield data

    def upload(self, size: int) -> tuple[float, str]:
        """Send batches of 1 MiB."""
        name = uuid.uuid4().hex
        begin = time.perf_counter()
        self._send(name, pieces(size), size)
        return time.perf_counter() - begin, name

    def _compare(self, name: str, size: int, unit: bytes) -> None:
        content = Content(unit)
        for data in self._follow(name):
            content.feed(data)
        content.end(size)

    def compare(self, handle: str, size: int) -> None:
        """Compare every byte."""
        self._compare(handle, size, DATA)

    def delete(self, handle: str) -> None:
        """Remove an upload."""
        delete(self._client, handle)

    def follow(self, size: int) -> float:
        """Send batches of 1 MiB while the other connection receives what is stored."""
        name = uuid.uuid4().hex
        with ThreadPoolExecutor(1) as threads:
            begin = time.perf_counter()
            sending = threads.submit(self._send, name, pieces(size), size)
            received = sum(map(len, self._follow(name)))
            sending.result()
            seconds = time.perf_counter() - begin
        expect(received, size)
        self._compare(name, size, DATA)
        self.delete(name)
        return seconds

    def lines(self, count: int) -> float:
        """Send each line as a batch of its own."""
        name = uuid.uuid4().hex
        begin = time.perf_counter()
        self._send(name, (LINE for _ in range(count)), count * len(LINE))
        seconds = time.perf_counter() - begin
        self._compare(name, count * len(LINE), LINE)
        self.delete(name)
        return seconds

    def latencies(self, count: int, pause: float) -> list[float]:
        """Send one line after the other, each to a follower that waits for it."""
        name = uuid.uuid4().hex
        upload = _Upload(self._client, name)
        # The first one waits for the follower to be there, and is not counted.
        upload.write(LINE)
        arriving = self._follow(name)
        found = [bytes(next(arriving))]
        latencies = []
        for _ in range(count):
            time.sleep(pause)
            begin = time.perf_counter()
            upload.write(LINE)
            found.append(bytes(next(arriving)))
            latencies.append(time.perf_counter() - begin)
        upload.end((count + 1) * len(LINE))
        rest = [*arriving]
        self.delete(name)
        if [*found, *rest] != [LINE] * (count + 1):
            raise AssertionError("the reader got something else than the lines that were written")
        return latencies
