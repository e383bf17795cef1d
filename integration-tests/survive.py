"""A stream on standard input that survives kills of the server and cuts of its connection.

    python integration-tests/survive.py [--size BYTES] [--kills N] [--cuts N] [--transport grpc|ws]...

`tailrace upload -` reads what this program makes up as it goes; another client follows the resource meanwhile, and both
reach the server through a proxy. At even distances of the follower the server is killed with SIGKILL and started again,
or all connections are cut. In the end the heads at the source, the server and the follower must be equal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from cells import Transport
from interruptions import MovableProxy
from server_process import COMMAND, ServerProcess, environment

from tailrace_common_api import ClientSettings, ResourceState
from tailrace_impl_common import ConnectedClient, HeadHasher
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_websocket import connect as connect_websocket

MEBIBYTE = 1024 * 1024
_BLOCK = 256 * 1024
_TRANSPORTS = {"grpc": Transport.GRPC, "ws": Transport.WEBSOCKET}


@dataclass(frozen=True)
class Survived:
    """What came out of a run; its heads were equal."""

    size: int
    kills: int
    cuts: int
    seconds: float
    head: str
    uploader_memory: int
    """Most memory that the uploader had resident up to the last fault, in bytes."""
    longest_gap: float
    """Longest time in which the follower got nothing, in seconds."""


def _blocks(size: int, seed: int) -> Iterator[bytes]:
    """Yield ``size`` bytes that cannot be foretold, cheaply: a random block, shifted by the number of each block."""
    block = random.Random(seed).randbytes(2 * _BLOCK)
    for number, start in enumerate(range(0, size, _BLOCK)):
        shift = number * 4099 % _BLOCK
        yield block[shift : shift + min(_BLOCK, size - start)]


async def survive(folder: Path, transport: Transport, *, size: int, kills: int, cuts: int, seed: int = 1) -> Survived:
    """Run one stream through all faults.

    Raises:
        AssertionError: Something was lost, repeated or changed, or the upload did not complete.
    """
    server = ServerProcess(folder / "data", folder, {"upload_grace": 120})
    await asyncio.to_thread(server.start)
    faults = ["kill"] * kills + ["cut"] * cuts
    random.Random(seed).shuffle(faults)
    try:
        proxy = MovableProxy(server.url(transport))
        async with proxy:
            uploader = await asyncio.create_subprocess_exec(
                *(*COMMAND, "upload", "-", "--json", "--no-lines", "--server", proxy.url),
                cwd=folder,
                env=environment(folder, TAILRACE_CLIENT_RECONNECT_TIMEOUT="120"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            try:
                return await _run(server, proxy, uploader, transport, size, faults, seed)
            finally:
                if uploader.returncode is None:
                    uploader.kill()
                    await uploader.wait()
    finally:
        await asyncio.to_thread(server.dispose)


async def _run(
    server: ServerProcess,
    proxy: MovableProxy,
    uploader: asyncio.subprocess.Process,
    transport: Transport,
    size: int,
    faults: Sequence[str],
    seed: int,
) -> Survived:
    assert uploader.stdout is not None
    begun = time.perf_counter()
    source = HeadHasher()
    harmed = asyncio.Event()
    feeding = asyncio.create_task(_feed(uploader, size, seed, source, harmed))
    reference = json.loads(await uploader.stdout.readline())["reference"]
    connect = connect_grpc if transport is Transport.GRPC else connect_websocket
    async with connect(proxy.url, ClientSettings(reconnect_timeout=120)) as client:
        memory = 0

        async def harm(fault: str) -> None:
            nonlocal memory
            memory = max(memory, _peak_memory(uploader.pid))
            await _harm(fault, server, proxy, transport)
            left.remove(fault)
            if not left:
                harmed.set()

        left = list(faults)
        if not left:
            harmed.set()
        follower, gap = await _follow(client, reference, size, faults, harm)
        await feeding
        finished = json.loads(await uploader.stdout.readline())
        assert await uploader.wait() == 0, finished
        status = await client.status(reference)
    seconds = time.perf_counter() - begun
    assert status.state is ResourceState.COMPLETED
    assert status.size == source.size == follower.size == size
    assert status.head == source.head() == follower.head()
    assert finished["status"]["head"] == status.head.hex()
    return Survived(size, faults.count("kill"), faults.count("cut"), seconds, status.head.hex(), memory, gap)


async def _feed(
    uploader: asyncio.subprocess.Process, size: int, seed: int, source: HeadHasher, harmed: asyncio.Event
) -> None:
    """Write the stream to the uploader's standard input, as fast as it is taken.

    The last block comes when all harm is done: the upload is to live through all of it.
    """
    assert uploader.stdin is not None
    for block in _blocks(size, seed):
        if source.size + len(block) == size:
            await harmed.wait()
        source.update(block)
        uploader.stdin.write(block)
        await uploader.stdin.drain()
    uploader.stdin.close()


async def _follow(
    client: ConnectedClient,
    reference: str,
    size: int,
    faults: Sequence[str],
    harm: Callable[[str], Awaitable[None]],
) -> tuple[HeadHasher, float]:
    """Follow to the end, doing harm on the way; return the hash state of what came, and the longest time without."""
    follower = HeadHasher()
    due = [(size * (number + 1) // (len(faults) + 1), fault) for number, fault in enumerate(faults)]
    longest, last = 0.0, time.perf_counter()
    async with aclosing(client.open(reference).follow_chunks()) as chunks:
        async for chunk in chunks:
            assert chunk.offset == follower.size, "a hole or a repetition"
            follower.update(chunk.data)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            while due and follower.size >= due[0][0]:
                _, fault = due.pop(0)
                await harm(fault)
    assert not due
    return follower, longest


async def _harm(fault: str, server: ServerProcess, proxy: MovableProxy, transport: Transport) -> None:
    if fault == "kill":
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        proxy.move(server.url(transport))
    else:
        proxy.cut()


def _peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048 * MEBIBYTE, help="bytes of the stream; 2 GiB by default")
    parser.add_argument("--kills", type=int, default=10, help="how often the server is killed")
    parser.add_argument("--cuts", type=int, default=20, help="how often all connections are cut")
    parser.add_argument("--transport", action="append", choices=sorted(_TRANSPORTS), help="both by default")
    arguments = parser.parse_args()
    for name in arguments.transport or sorted(_TRANSPORTS):
        with tempfile.TemporaryDirectory() as folder:
            survived = asyncio.run(
                survive(
                    Path(folder),
                    _TRANSPORTS[name],
                    size=arguments.size,
                    kills=arguments.kills,
                    cuts=arguments.cuts,
                )
            )
        print(
            f"{name}: {survived.size / MEBIBYTE:.0f} MiB through {survived.kills} kills and {survived.cuts} cuts in "
            f"{survived.seconds:.1f} s, head {survived.head} at source, server and follower; longest time without data "
            f"{survived.longest_gap:.2f} s, uploader {survived.uploader_memory / MEBIBYTE:.0f} MiB"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
