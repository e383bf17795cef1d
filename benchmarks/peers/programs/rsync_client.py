"""rsync as a command, against a daemon: whole files both ways."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from peers.programs.commands import run
from peers.programs.contents import MEBIBYTE, Content, expect, pieces


class Client:
    """Starts `rsync` for each operation; what it sends is a file, written before the time begins."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._program: str = settings["program"]
        self._folder = Path(settings["folder"])
        self._module = f"rsync://127.0.0.1:{settings['port']}/stored"

    def upload(self, size: int) -> tuple[float, str]:
        """Send a file."""
        name = uuid.uuid4().hex
        source = self._folder / name
        with source.open("xb", buffering=0) as file:
            for piece in pieces(size):
                file.write(piece)
        try:
            begin = time.perf_counter()
            run([self._program, "--whole-file", str(source), f"{self._module}/{name}"])
            return time.perf_counter() - begin, name
        finally:
            source.unlink()

    def _fetch(self, handle: str) -> tuple[float, Path]:
        target = self._folder / f"{handle}.fetched"
        begin = time.perf_counter()
        run([self._program, "--whole-file", f"{self._module}/{handle}", str(target)])
        return time.perf_counter() - begin, target

    def download(self, handle: str, size: int, verify: bool) -> float:
        """Fetch it into a new file, which rsync always compares by a hash."""
        seconds, target = self._fetch(handle)
        expect(target.stat().st_size, size)
        target.unlink()
        return seconds

    def compare(self, handle: str, size: int) -> None:
        """Compare every byte."""
        _, target = self._fetch(handle)
        content = Content()
        with target.open("rb", buffering=0) as file:
            while piece := file.read(MEBIBYTE):
                content.feed(piece)
        content.end(size)
        target.unlink()
