"""rclone as a command: its standard input to a file on the server, and a file to its standard output."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from peers.programs.commands import drain, feed
from peers.programs.contents import DATA, LINE, Content, hash_of, pieces, timed_download


class Client:
    """Starts `rclone` for each operation."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._program: str = settings["program"]
        self._options = ["--config", "", "--webdav-url", f"http://127.0.0.1:{settings['port']}"]
        self._options += ["--webdav-vendor", "other"]

    def _send(self, parts: Iterable[bytes], size: int) -> tuple[float, str]:
        name = uuid.uuid4().hex
        begin = time.perf_counter()
        feed([self._program, "rcat", f":webdav:{name}", "--size", str(size), *self._options], parts)
        return time.perf_counter() - begin, name

    def upload(self, size: int) -> tuple[float, str]:
        """Write pieces of 1 MiB into the pipe of `rclone rcat`."""
        return self._send(pieces(size), size)

    def download(self, handle: str, size: int, verify: bool) -> float:
        """Read the pipe of `rclone cat`."""
        return timed_download(lambda take: self._cat(handle, take), size, hash_of(size) if verify else None)

    def _cat(self, handle: str, take: Callable[[memoryview], object]) -> None:
        drain([self._program, "cat", f":webdav:{handle}", *self._options], take)

    def compare(self, handle: str, size: int, unit: bytes = DATA) -> None:
        """Compare every byte."""
        content = Content(unit)
        self._cat(handle, content.feed)
        content.end(size)

    def lines(self, count: int) -> float:
        """Write each line into the pipe by itself."""
        size = count * len(LINE)
        seconds, name = self._send((LINE for _ in range(count)), size)
        self.compare(name, size, LINE)
        return seconds
