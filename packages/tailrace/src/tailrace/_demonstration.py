"""What `tailrace demo` shows: one live stream through real processes, and the heads that all of them compute."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import click

from tailrace._connect import connect
from tailrace._exit_codes import ExitCode
from tailrace._grpc_core import environment_of_others
from tailrace._messages import printable, say
from tailrace._status_report import status_row
from tailrace_client_download_api import RemoteResource
from tailrace_common_api import Status

_PIECE = 64 * 1024
# Least time between two status lines while the resource grows, in seconds: a demonstration is to be read.
_PACE = 0.25
# Time that a process has to end by itself once it was told to, in seconds.
_PATIENCE = 10.0


async def demonstrate(work: Sequence[str]) -> ExitCode:
    """Run the demonstration with the output of a command, and print what happens.

    Returns:
        Success if all heads agree.

    Raises:
        click.UsageError: The command cannot be started.
        TailraceError: Something failed on the way.
    """
    with tempfile.TemporaryDirectory(prefix="tailrace-demo-") as folder:
        async with AsyncExitStack() as stack:
            urls = await stack.enter_async_context(_server(Path(folder)))
            _say("server", f"{urls['grpc']}  {urls['ws']}  {urls['http']}")
            source = await _start_work(stack, work)
            _say("command", printable(shlex.join(work)))
            return await _stream(stack, source, urls, Path(folder))


async def _stream(stack: AsyncExitStack, source: Process, urls: dict[str, str], folder: Path) -> ExitCode:
    uploader = await _start(stack, "upload", "-", "--name", "demo.log", "--server", urls["grpc"], stdin=PIPE)
    source_head = await _start(stack, "head", "-", stdin=PIPE)
    copying = asyncio.create_task(_copy(source, uploader, source_head))
    stack.push_async_callback(_end_task, copying)
    reference = await _first_line(uploader)
    _say("upload", f"{reference}, over gRPC")

    live_copy = folder / "live"
    follower = await _start(stack, "follow", reference, "--server", urls["ws"], "-o", str(live_copy))
    _say("follow", "over WebSocket, from the first byte, while it grows")
    async with connect(urls["ws"], config=os.devnull) as client, client.open(reference) as resource:
        final = await _watch(resource)

    if await copying:
        _say("command", f"ended with exit code {source.returncode}")
    else:
        _say("command", "ended")
    if await uploader.wait() or await follower.wait():
        raise click.ClickException("the upload or the follower failed")
    downloaded = folder / "downloaded"
    download = await _start(stack, "download", reference, "--server", urls["grpc"], "-o", str(downloaded))
    if await download.wait():
        raise click.ClickException("the download failed")
    heads = {
        "source": (await _only_line(source_head), "what the command wrote, before it was sent"),
        "server": (final.head.hex(), "what the server stored"),
        "reader 1": (await _head_of(stack, live_copy), "what was followed live over WebSocket"),
        "reader 2": (await _head_of(stack, downloaded), "what was downloaded over gRPC"),
    }
    for who, (head, what) in heads.items():
        _say(who, f"{head}  {what}")
    if len({head for head, _ in heads.values()}) != 1:
        _say("result", "THE HEADS DIFFER")
        return ExitCode.INTEGRITY
    _say("result", f"four processes computed the same head of {final.size:,} bytes")
    return ExitCode.SUCCESS


def _say(what: str, text: str) -> None:
    say(f"{what:<9} {text}")


async def _watch(resource: RemoteResource) -> Status:
    """Print the status as it changes, with the last line at that time, and return the final one."""
    shown = 0.0
    state = None
    async with aclosing(resource.statuses()) as statuses:
        async for status in statuses:
            now = time.monotonic()
            if status.state == state and now - shown < _PACE:
                continue
            shown, state = now, status.state
            _say("status", status_row(status))
            lines = await resource.read_lines(last=3) if status.lines else []
            for line in lines:
                _say("", f"| {printable(line.decode(errors='replace').rstrip())[:100]}")
    return status


async def _copy(source: Process, uploader: Process, hasher: Process) -> int:
    """Hand what the command writes to the uploader and to the hasher, as it comes; return the command's exit code."""
    assert source.stdout is not None
    sinks = [process.stdin for process in (uploader, hasher) if process.stdin is not None]
    try:
        while data := await source.stdout.read(_PIECE):
            for sink in sinks:
                sink.write(data)
                await sink.drain()
    except ConnectionError as error:
        raise click.ClickException("the upload ended before the command") from error
    finally:
        for sink in sinks:
            sink.close()
    return await source.wait()


async def _start_work(stack: AsyncExitStack, work: Sequence[str]) -> Process:
    try:
        process = await asyncio.create_subprocess_exec(
            *work,
            stdin=subprocess.DEVNULL,
            stdout=PIPE,
            stderr=subprocess.STDOUT,
            env=environment_of_others(),
        )
    except OSError as error:
        raise click.UsageError(f"{work[0]} cannot be started: {error.strerror}") from error
    stack.push_async_callback(_end, process)
    return process


async def _start(stack: AsyncExitStack, *arguments: str, stdin: int = subprocess.DEVNULL) -> Process:
    """Start a command of this command line as a process of its own; it ends with the stack at the latest."""
    # Settings of the user are not those of the demonstration.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
    environment |= {"TAILRACE_CONFIG": os.devnull, "TAILRACE_SERVE_LOG_LEVEL": "warning"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "tailrace", *arguments, stdin=stdin, stdout=PIPE, env=environment
    )
    stack.push_async_callback(_end, process)
    return process


async def _end(process: Process) -> None:
    """End a process in order, or else by force."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_PATIENCE):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _end_task(task: asyncio.Task[int]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


async def _first_line(process: Process) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise click.ClickException("a process of the demonstration ended without an answer")
    return line.decode().strip()


async def _head_of(stack: AsyncExitStack, path: Path) -> str:
    return await _only_line(await _start(stack, "head", str(path)))


async def _only_line(process: Process) -> str:
    """Return the line that a process ends with; one that is told to end meanwhile would complain."""
    line = await _first_line(process)
    await process.wait()
    return line


@asynccontextmanager
async def _server(folder: Path) -> AsyncGenerator[dict[str, str], None]:
    """Run a server on a folder and yield its URLs by scheme."""
    async with AsyncExitStack() as stack:
        addresses = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
        data = str(folder / "data")
        process = await _start(stack, "serve", "--json", "--data", data, *addresses)
        yield json.loads(await _first_line(process))
