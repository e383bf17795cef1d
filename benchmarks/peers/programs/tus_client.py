"""tuspy, the Python client of tus; downloads by a plain GET, which the server has beyond the protocol."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import requests
from tusclient.client import TusClient

from peers.programs.contents import DATA, LINE, MEBIBYTE, Content, hash_of, timed_download


class Repeated(io.RawIOBase):
    """A file that consists of repetitions, as long as it is said to be, and takes no memory."""

    def __init__(self, unit: bytes, size: int) -> None:
        super().__init__()
        self._unit = unit
        self._size = size
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next ``size`` bytes; whole units where they are aligned, as uploads read them."""
        count = self._size - self._position if size < 0 else min(size, self._size - self._position)
        begin = self._position % len(self._unit)
        self._position += count
        if begin == 0 and count % len(self._unit) == 0:
            return self._unit * (count // len(self._unit))
        return (self._unit * (count // len(self._unit) + 2))[begin : begin + count]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, as any file does."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


class Client:
    """Uploads by tuspy's blocking uploader."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._client = TusClient(f"http://127.0.0.1:{settings['port']}/files")
        self._chunk: int = settings["chunk"]
        self._session = requests.Session()

    def _send(self, source: Repeated, chunk: int) -> tuple[float, str]:
        begin = time.perf_counter()
        # Without any metadata it sends an empty header, which the server refuses.
        uploader = self._client.uploader(file_stream=source, chunk_size=chunk, metadata={"filename": "benchmark"})
        uploader.upload()
        return time.perf_counter() - begin, uploader.url

    def upload(self, size: int) -> tuple[float, str]:
        """Send it in requests of the chunk size."""
        return self._send(Repeated(DATA, size), self._chunk)

    def _receive(self, url: str, take: Callable[[bytes], object]) -> None:
        with self._session.get(url, stream=True) as response:
            response.raise_for_status()
            for piece in response.iter_content(MEBIBYTE):
                take(piece)

    def download(self, handle: str, size: int, verify: bool) -> float:
        """GET in pieces of 1 MiB."""
        return timed_download(lambda take: self._receive(handle, take), size, hash_of(size) if verify else None)

    def compare(self, handle: str, size: int) -> None:
        """Compare every byte."""
        content = Content()
        self._receive(handle, content.feed)
        content.end(size)

    def lines(self, count: int) -> float:
        """Send each line in a request of its own: a chunk is what the protocol acknowledges."""
        size = count * len(LINE)
        seconds, url = self._send(Repeated(LINE, size), len(LINE))
        content = Content(LINE)
        self._receive(url, content.feed)
        content.end(size)
        return seconds
