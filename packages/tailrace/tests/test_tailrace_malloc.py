"""What malloc keeps, in processes of their own: it is that of the whole process."""

import platform
import subprocess
import sys

import pytest

_AT_REST = """
import asyncio, contextlib
from pathlib import Path
from tailrace import _malloc

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def burst():
    buffers = [bytes(900_000) for _ in range(200)]
    # What outlives the burst lies behind the rest of it, so that malloc cannot cut its end off by itself.
    return bytes(1000)

async def main():
    assert _malloc.tune_malloc()
    _malloc._INTERVAL = 0.05
    spent = 0.0
    # The processor's time as the test wants it: busy until the burst is over.
    _malloc.time.process_time = lambda: spent
    giving_back = asyncio.create_task(_malloc.give_back_at_rest())
    kept = []
    for _ in range(2):
        kept.append(burst())
        full = resident()
        for _ in range(3):
            spent += 1.0
            await asyncio.sleep(0.05)
            assert resident() > full - 10_000_000
        while resident() > full - 150_000_000:
            await asyncio.sleep(0.01)
    giving_back.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await giving_back
    print("given back twice")

asyncio.run(main())
"""
_ELSEWHERE = """
import asyncio
from tailrace import _malloc
asyncio.run(asyncio.wait_for(_malloc.give_back_at_rest(), 20))
print("nothing to give back")
"""


def _run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the malloc of glibc is tuned")
def test_memory_is_given_back_each_time_that_a_tuned_process_comes_to_rest() -> None:
    assert _run(_AT_REST) == "given back twice"


def test_where_malloc_was_not_tuned_nobody_waits_for_rest() -> None:
    assert _run(_ELSEWHERE) == "nothing to give back"
