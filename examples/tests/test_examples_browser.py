"""The page in headless Chromium against a real server."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from example_processes import TAILRACE, Run, Server, serve
from record_settings import record_settings


@pytest.fixture
def chromium() -> str:
    found = os.environ.get("CHROMIUM")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = found or shutil.which(name)
    assert found, "Chromium is missing: scripts/setup-node"
    return found


@pytest.fixture
def open_server(tmp_path: Path) -> Iterator[Server]:
    """A server that pages of every origin may use: the page comes from a port of its own."""
    with serve(tmp_path, '[http.options]\norigins = "*"\n' + record_settings(tmp_path)) as server:
        yield server


def test_the_page_uploads_follows_sends_bulks_and_asks(
    examples: Path, chromium: str, open_server: Server, run: Run, tmp_path: Path
) -> None:
    server = open_server
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(i % 251 for i in range(300_000)))
    references = json.loads(run("node", examples / "browser" / "check-page.js", chromium, server.ws, source))
    assert run(*TAILRACE, "download", references["uploaded"]) == source.read_bytes()
    assert run(*TAILRACE, "lines", references["live"], "1:") == b"linking\n"
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as shop:
        # What the page sent at once, and nothing of what was refused.
        assert shop.execute("SELECT name FROM contacts ORDER BY name").fetchall() == [("Ada",), ("Grace",), ("Zoë",)]
