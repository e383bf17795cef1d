"""A plain HTTP client for nginx: PUT and GET over one kept connection, by the standard library."""

from __future__ import annotations

import http.client
import time
import uuid
from collections.abc import Callable
from typing import Any

from peers.programs.contents import LINE, MEBIBYTE, Content, hash_of, pieces, timed_download


class Client:
    """Uploads and downloads by a blocking connection."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # A block is what the connection reads at once from a body that has no length; ours come in pieces.
        self._connection = http.client.HTTPConnection("127.0.0.1", settings["port"])

    def _end(self, expected: int) -> None:
        response = self._connection.getresponse()
        response.read()
        if response.status != expected:
            raise AssertionError(f"nginx answered {response.status} {response.reason}")

    def upload(self, size: int) -> tuple[float, str]:
        """PUT a body of known length in pieces of 1 MiB."""
        path = f"/{uuid.uuid4().hex}"
        begin = time.perf_counter()
        self._connection.request("PUT", path, body=pieces(size), headers={"Content-Length": str(size)})
        self._end(201)
        return time.perf_counter() - begin, path

    def _receive(self, path: str, take: Callable[[memoryview], object]) -> None:
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        if response.status != 200:
            raise AssertionError(f"nginx answered {response.status} {response.reason}")
        buffer = memoryview(bytearray(MEBIBYTE))
        while length := response.readinto(buffer):
            take(buffer[:length])

    def download(self, handle: str, size: int, verify: bool) -> float:
        """GET into a buffer of 1 MiB."""
        return timed_download(lambda take: self._receive(handle, take), size, hash_of(size) if verify else None)

    def compare(self, handle: str, size: int) -> None:
        """Compare every byte."""
        content = Content()
        self._receive(handle, content.feed)
        content.end(size)

    def lines(self, count: int) -> float:
        """PUT a body of unknown length, each line a chunk of its own."""
        path = f"/{uuid.uuid4().hex}"
        begin = time.perf_counter()
        self._connection.request("PUT", path, body=(LINE for _ in range(count)), encode_chunked=True)
        self._end(201)
        seconds = time.perf_counter() - begin
        content = Content(LINE)
        self._receive(path, content.feed)
        content.end(count * len(LINE))
        self.delete(path)
        return seconds

    def delete(self, handle: str) -> None:
        """DELETE what was PUT."""
        self._connection.request("DELETE", handle)
        self._end(204)
