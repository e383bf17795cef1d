"""What malloc keeps, in processes of their own: it is that of the whole process."""

import platform
import subprocess
import sys

import pytest

_AT_REST = """
import asyncio, contextlib, sys
from pathlib import Path
from tailrace import _malloc

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

SIZE, _malloc._LONG_REST = int(sys.argv[1]), int(sys.argv[2])

def burst():
    buffers = [bytes(900_000) for _ in range(SIZE // 900_000)]
    # What outlives the burst lies behind the rest of it, so that malloc cannot cut its end off by itself.
    return bytes(1000)

async def main():
    assert _malloc.tune_malloc()
    _malloc._INTERVAL = 0.05
    spent = 0.0
    # The processor's time as the test wants it: busy until the burst is over.
    _malloc.time.process_time = lambda: spent
    looks = []

    def look():
        looks.append(resident())
        return looks[-1]

    _malloc._resident = look
    giving_back = asyncio.create_task(_malloc.give_back_at_rest())
    await asyncio.sleep(0)
    kept = []
    for _ in range(2):
        kept.append(burst())
        full = resident()
        looks.clear()
        for _ in range(3):
            spent += 1.0
            await asyncio.sleep(0.05)
            assert resident() > full - SIZE // 20
        if sys.argv[3] == "kept":
            await asyncio.sleep(1)
            assert resident() > full - SIZE // 20
            break
        # Not before it has seen that itself: what grows while it gives back is what it begins the next time with.
        while not looks or looks[-1] > full - SIZE // 10 * 8:
            await asyncio.sleep(0.01)
    giving_back.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await giving_back
    print(sys.argv[3])

asyncio.run(main())
"""
_ELSEWHERE = """
import asyncio
from tailrace import _malloc
asyncio.run(asyncio.wait_for(_malloc.give_back_at_rest(), 20))
print("nothing to give back")
"""


def _run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the malloc of glibc is tuned")
@pytest.mark.parametrize(
    ("size", "long_rest", "end"),
    [(200_000_000, 1_000_000, "given back"), (40_000_000, 5, "given back"), (40_000_000, 1_000_000, "kept")],
    ids=["much, soon", "little, after a long rest", "little, not soon"],
)
def test_memory_is_given_back_when_a_tuned_process_comes_to_rest(size: int, long_rest: int, end: str) -> None:
    assert _run(_AT_REST, size, long_rest, end) == end


def test_where_malloc_was_not_tuned_nobody_waits_for_rest() -> None:
    assert _run(_ELSEWHERE) == "nothing to give back"
