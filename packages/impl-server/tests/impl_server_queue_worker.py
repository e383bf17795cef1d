"""Works a queue in a file, and tells of every acknowledgement that was answered; to be killed."""

import asyncio
import sys
from pathlib import Path

from tailrace_common_api import Settlement, Verdict
from tailrace_impl_server._sqlite_queue import SqliteQueue
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Claim, Durability


async def main(folder: Path) -> None:
    """Work the queue in ``folder`` to its end."""
    file = SqliteThread(folder / "queue.sqlite", durability=Durability.FSYNC)
    staging = SqliteThread(folder / "queue.staging.sqlite", durability=Durability.OS)
    queue = SqliteQueue("tasks", file, staging, lease=0.05)
    await queue.start()
    while True:
        [given] = await queue.claim([Claim("worker", 20, 1 << 20, True)])
        if not given:
            due = await queue.next_due()
            if due is None:
                break
            await asyncio.sleep(due)
        answers = [Settlement(record.id, record.attempt, Verdict.ACKNOWLEDGE) for record in given]
        counting = await queue.settle(answers)
        done = [record.data.decode() for record, counts in zip(given, counting, strict=True) if counts]
        sys.stdout.write("".join(f"{text}\n" for text in done))
        sys.stdout.flush()
    await queue.close()
    sys.stdout.write("end\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
