"""An upload at a steady rate, until standard input ends: `uploader.py URL BYTES_PER_SECOND`."""

from __future__ import annotations

import asyncio
import sys
import time

from loops import run_coroutine
from raw_socket import MESSAGE, random_message

import tailrace
from tailrace._malloc import tune_malloc


async def upload(url: str, rate: float) -> None:
    """Upload until standard input ends, then delete it; print that it runs, and at what rate it ran, in bytes/s."""
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    data = random_message()
    async with tailrace.connect(url) as client:
        session = client.upload("beside")
        async with session:
            begin = time.perf_counter()
            written = 0
            while not ended.done():
                await session.write(data)
                written += MESSAGE
                if written == 32 * MESSAGE:
                    print("running", flush=True)
                await asyncio.sleep(max(0.0, begin + written / rate - time.perf_counter()))
            seconds = time.perf_counter() - begin
        await client.delete(session.reference)
    print(written / seconds, flush=True)


if __name__ == "__main__":
    tune_malloc()
    run_coroutine(upload(sys.argv[1], float(sys.argv[2])))
