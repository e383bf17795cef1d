"""Honest clients beside hostile ones: nobody errs, everybody gets on, and the server's memory stays bounded."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest
from cells import Transport
from hostile_clients import TYPED
from manifest import proves
from server_process import ServerProcess, environment
from soak import SOAK

from tailrace_common_api import ClientSettings
from tailrace_impl_common import ConnectedClient
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_websocket import connect as connect_websocket

SCALE = 20 if SOAK else 2
"""100 and 1,000 stalled readers, and so on; see `hostile_clients.py`."""
LINES = 3_000 if SOAK else 150
LINE_PAUSE = 0.02
MEBIBYTE = 1024 * 1024
MEMORY_BOUND = (1024 if SOAK else 640) * MEBIBYTE
"""What the server may take under these attacks with the settings below: 90 MiB for itself, 64 for windows of uploads,
32 for recent bytes, 128 for chunks on their way and 64 KiB more for each stalled reader, and what malloc keeps of freed
memory, of which it is told to give back what is above 512 MiB.
"""
OPTIONS = {
    "upload_windows_total": 64 * MEBIBYTE,
    "tails_total": 32 * MEBIBYTE,
    "max_resource_size": 16 * MEBIBYTE,
    "max_storage_bytes": 2048 * MEBIBYTE,
    "upload_grace": 1.0,
    "retention_failed": 0.0,
    "sweep_interval": 0.2,
}


class Honest:
    """A client that uploads lines, follows them, and reads ranges, and how long it ever had to wait."""

    def __init__(self, client: ConnectedClient) -> None:
        self._client = client
        self.longest_stall = 0.0
        self.reads = 0
        self.received = b""

    async def run(self) -> None:
        async with self._client.upload("honest", lines=True) as upload, asyncio.TaskGroup() as group:
            following = group.create_task(self._follow(upload.id))
            reading = group.create_task(self._read(upload.id))
            for number in range(LINES):
                begun = time.perf_counter()
                await upload.write(b"line %d\n" % number)
                await upload.flush()
                self._stalled(begun)
                await asyncio.sleep(LINE_PAUSE)
            status = await upload.finish()
            assert status.size == upload.offset
            await following
            reading.cancel()

    async def _follow(self, id: str) -> None:
        async for data in self._client.open(id).follow():
            self.received += data

    async def _read(self, id: str) -> None:
        resource = self._client.open(id)
        while True:
            begun = time.perf_counter()
            status = await resource.status()
            assert await resource.read(0, min(status.size, 100)) == self.expected[: min(status.size, 100)]
            self._stalled(begun)
            self.reads += 1
            await asyncio.sleep(LINE_PAUSE)

    def _stalled(self, begun: float) -> None:
        self.longest_stall = max(self.longest_stall, time.perf_counter() - begun)

    @property
    def expected(self) -> bytes:
        return b"".join(b"line %d\n" % number for number in range(LINES))


def peak_memory(pid: int) -> int:
    """Return the most memory that a process has had resident, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@proves("CON-2", "DWN-8", "LIM-1")
@pytest.mark.timeout(1800 if SOAK else 400)
async def test_hostile_clients_disturb_nobody(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", tmp_path, OPTIONS)
    await asyncio.to_thread(server.start)
    try:
        settings = ClientSettings(reconnect_timeout=0)
        async with (
            connect_grpc(server.url(Transport.GRPC), settings) as over_grpc,
            connect_websocket(server.url(Transport.WEBSOCKET), settings) as over_websocket,
        ):
            async with over_grpc.upload("big") as upload:
                await upload.write(bytes(16 * MEBIBYTE))
            honest = [Honest(over_grpc), Honest(over_websocket)]
            attacker = await asyncio.create_subprocess_exec(
                sys.executable,
                Path(__file__).with_name("hostile_clients.py"),
                *(server.urls["grpc"], server.urls["ws"], server.urls["http"]),
                upload.id,
                str(SCALE),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment(tmp_path, PYTHONPATH=os.pathsep.join(sys.path)),
            )
            try:
                async with asyncio.TaskGroup() as group:
                    for client in honest:
                        group.create_task(client.run())
                assert attacker.stdout is not None
                assert await attacker.stdout.readline() == b"refused\n"
                output, _ = await attacker.communicate(b"")
            finally:
                if attacker.returncode is None:
                    attacker.kill()
                    await attacker.wait()
            # Those who are gone are forgotten, and the server works as before.
            assert (await over_grpc.status(upload.id)).size == 16 * MEBIBYTE
        refused = json.loads(output)
        peak = peak_memory(server.pid)
        for client in honest:
            assert client.received == client.expected
            assert client.reads > 0
        stalls = ", ".join(f"{client.longest_stall:.2f} s" for client in honest)
        print(f"longest stall {stalls}; server {peak // MEBIBYTE} MiB; refused {refused}")
        assert peak < MEMORY_BOUND
        for attack in TYPED:
            assert "untyped" not in refused[attack], attack
            assert "internal" not in refused[attack], attack
        assert "Traceback" not in server.log
        assert await asyncio.to_thread(server.stop) == 0
    finally:
        await asyncio.to_thread(server.dispose)
