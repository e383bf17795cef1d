"""What the READMEs show is run as it is written, against a real server."""

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import tailrace
from tailrace._settings import load_settings
from tailrace.logging import ResourceHandler

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
# Generated from .proto files that the reader has.
CODE_OF_THE_READER = ("warehouse_pb2", "contacts_pb2")
# What the READMEs import into, and what they query.
ENDS = """
[collections.contacts]

[queues.letters]

[databases.shop]
url = "sqlite:shop.sqlite"

[sources.recommendations]
database = "shop"
sql = "SELECT title FROM books WHERE :user_id > 0 LIMIT :max_results"
parameters = {user_id = "integer", max_results = "integer = 10"}
"""
# Without what a make around the tests says to the make inside them.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("TAILRACE_", "MAKE", "MFLAGS"))
}


def blocks(language: str) -> list[Any]:
    found = []
    for readme in READMES:
        texts = re.findall(rf"^```{language}\n(.*?)^```", readme.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        name = readme.parent.name if readme.parent != ROOT else "tailrace-repository"
        found += [pytest.param(text, id=f"{name}-{number}") for number, text in enumerate(texts)]
    return found


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "tailrace.toml").write_text(ENDS)
    with closing(sqlite3.connect(folder / "shop.sqlite")) as shop:
        shop.execute("CREATE TABLE books (title TEXT)")
        shop.execute("INSERT INTO books VALUES ('Emma'), ('Ulysses')")
        shop.commit()
    command = [sys.executable, "-P", "-m", "tailrace", "serve", "--json", "--grpc", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--http", "127.0.0.1:0"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def at(text: str, urls: dict[str, str]) -> str:
    """Return a snippet that talks to the server of the tests."""
    for shown, scheme in (
        ("grpc://localhost:7070", "grpc"),
        ("ws://localhost:7080", "ws"),
        ("http://localhost:7080", "http"),
    ):
        text = text.replace(shown, urls[scheme])
    return text


@pytest.fixture
async def reference(urls: dict[str, str]) -> str:
    async with tailrace.connect(urls["ws"]) as client, client.upload("seen.log", lines=True) as upload:
        await upload.write(b"one\ntwo\n")
    return upload.reference


async def lines() -> AsyncGenerator[bytes, None]:
    yield b"one\n"


async def contacts() -> AsyncGenerator[dict[str, object], None]:
    yield {"name": "Ada"}


@pytest.mark.parametrize("text", blocks("python"))
async def test_python_runs(
    text: str, urls: dict[str, str], reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = compile(text, "README.md", "exec")
    if any(module in text for module in CODE_OF_THE_READER):
        return  # Its sense is tested with the chunk chain, and with bulks of other services.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.bin").write_bytes(bytes(range(256)))
    (tmp_path / "app.log").write_bytes(b"one\n")
    stopped = asyncio.Event()
    stopped.set()
    code = compile(at(text, urls), "README.md", "exec")
    names: dict[str, Any] = {"__name__": "snippet"}
    # In a thread without a loop, as a program runs it.
    await asyncio.to_thread(exec, code, names)
    for handler in [handler for handler in logging.getLogger().handlers if isinstance(handler, ResourceHandler)]:
        logging.getLogger().removeHandler(handler)
        await asyncio.to_thread(handler.flush)
        assert handler.reference is not None
        await asyncio.to_thread(handler.close)
    async with tailrace.connect(urls["grpc"]) as client:
        known: dict[str, Any] = {"reference": reference, "lines": lines(), "stopped": stopped, "finished": lambda: True}
        known |= {"client": client, "contacts": contacts(), "user": 1}
        for function in [value for value in names.values() if asyncio.iscoroutinefunction(value)]:
            if function.__module__ != "snippet":
                continue
            known |= {"resource": client.open(reference), "upload": client.upload("report.log")}
            arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
            await function(*(known[name] for name in arguments))


async def run_commands(lines: list[str], folder: Path) -> str:
    """Run lines of a shell, in which ``tailrace`` is this one, and return what they print."""
    script = ["set -eu -o pipefail", 'tailrace() { "$PYTHON" -P -m tailrace "$@"; }', *lines]
    outcome = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    printed: str = outcome.stdout
    return printed


def commands(text: str) -> list[str]:
    """Return the lines of a snippet without what is said about them."""
    return [line.partition("  #")[0].strip() for line in text.splitlines()]


@pytest.mark.parametrize("text", [block for block in blocks("sh") if "tailrace context" in block.values[0]])
async def test_contexts_group_what_is_uploaded(text: str, urls: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n\t@echo one; echo two\n")
    printed = await run_commands(commands(at(text, urls)), tmp_path)
    assert "build.log" in printed
    assert "CLOSED" in printed


@pytest.mark.parametrize("text", [block for block in blocks("sh") if "tailrace token" in block.values[0]])
async def test_tokens_are_made_and_taken_back(text: str, tmp_path: Path) -> None:
    printed = await run_commands([line.replace("CONTEXT", "0" * 32) for line in commands(text)], tmp_path)
    assert "ci" in printed
    listed = await run_commands(["tailrace token list"], tmp_path)
    assert "ci" in listed


@pytest.mark.parametrize("text", [block for block in blocks("sh") if "/metrics" in block.values[0]])
async def test_metrics_and_verification(text: str, urls: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    # The folder of a server that has stopped.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tailrace", "serve", "--json", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    process.terminate()
    assert await process.wait() == 0
    printed = await run_commands(commands(at(text, urls)), tmp_path)
    assert re.search(r"^tailrace_uploads_open \d", printed, re.MULTILINE)


@pytest.mark.parametrize("text", [block for block in blocks("sh") if "-o build.log" in block.values[0]])
async def test_commands_run(text: str, urls: dict[str, str], tmp_path: Path) -> None:
    """The commands around an upload; those that make a server of their own have their own tests."""
    (tmp_path / "Makefile").write_text("all:\n\t@echo one; echo two\n")
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    lines = []
    for command in commands(at(text, urls)):
        if not command.startswith(("tailrace serve", "tailrace demo", "tailrace bench")):
            uploads = "tailrace upload" in command
            lines.append(f"REF=$({command})" if uploads else re.sub(r"\bREF\b", '"$REF"', command))
    printed = await run_commands(lines, tmp_path)
    assert printed.startswith("one\ntwo\n")
    assert (tmp_path / "build.log").read_bytes() == b"one\ntwo\n"
    assert re.fullmatch("[0-9a-f]{32}", printed.splitlines()[-1])


@pytest.mark.parametrize("text", [block for block in blocks("sh") if "curl http" in block.values[0]])
async def test_curl_reads(text: str, urls: dict[str, str], reference: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    for line in at(text, urls).splitlines():
        command = line.partition("  #")[0].strip().replace("/r/ID", f"/r/{reference.rpartition('/')[2]}")
        command = command.replace("/query/NAME?k=v", "/query/recommendations?user_id=1")
        outcome = await asyncio.to_thread(
            subprocess.run, ["sh", "-c", f"{command} -sS --fail"], capture_output=True, check=False
        )
        assert outcome.returncode == (22 if "lines=10:20" in command else 0), outcome.stderr
        if "/query/" in command:
            assert outcome.stdout == b'{"title":"Emma"}\n{"title":"Ulysses"}\n'
        elif "lines=10:20" not in command:  # There are two.
            assert outcome.stdout == b"one\ntwo\n"


@pytest.mark.parametrize("text", [block for block in blocks("sh") if "tailrace bulk" in block.values[0]])
async def test_records_are_sent_queried_and_worked_on(text: str, urls: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "contacts.ndjson").write_text('{"email": "ann@example.org"}\n')
    (tmp_path / "letters.ndjson").write_text('{"to": "ann@example.org"}\n{"to": null}\n')
    server = [f"export TAILRACE_SERVER={urls['ws']}"]
    figures = [*server, "tailrace queue letters --json"]
    # Other snippets leave letters behind.
    await run_commands([*server, "tailrace work letters --drain -- true"], tmp_path)
    before = json.loads(await run_commands(figures, tmp_path))
    printed = await run_commands([*server, *commands(text)], tmp_path)
    assert "contacts: 1 records, " in printed
    assert '{"title":"Emma"}\n{"title":"Ulysses"}\n' in printed
    after = json.loads(await run_commands(figures, tmp_path))
    assert (after["ready"], after["in_flight"], after["dead"]) == (0, 0, before["dead"] + 1)


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings_are_understood(text: str, tmp_path: Path) -> None:
    (tmp_path / "tailrace.toml").write_text(text)
    load_settings(config=tmp_path / "tailrace.toml", environment={})
