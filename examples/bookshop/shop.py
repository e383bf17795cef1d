"""A bookshop whose services talk in records: run it, and see what happens.

    python examples/bookshop/shop.py [--once] [--database postgresql://USER:PASSWORD@HOST/DATABASE]

It starts a server on a database of its own and shows three things: recommendations that stream from a query, contacts
that are created together or not at all, and letters that three workers write. Without --once it goes on with letters
until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import urllib.request
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

import stock

import tailrace
from tailrace_common_api import BulkRefused, record_problems

HERE = Path(__file__).resolve().parent
READER = 7
CONTACTS = 2_000
LETTERS = 60


@asynccontextmanager
async def running_server(folder: Path, database: str) -> AsyncGenerator[dict[str, str], None]:
    """Run `tailrace serve` with the settings of the bookshop, and yield its URLs by scheme."""
    options = ("--config", "bookshop.toml", "--data", str(folder / "data"), "--json")
    addresses = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tailrace", "serve", *options, *addresses),
        cwd=HERE,  # The schema is beside the settings.
        env=os.environ | {"TAILRACE_DATABASES_SHOP_URL": database, "TAILRACE_SERVE_LOG_LEVEL": "warning"},
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the shop, which then ends its server.
    )
    try:
        assert server.stdout is not None
        ready = await server.stdout.readline()
        if not ready:
            raise SystemExit("the server did not start")
        urls: dict[str, str] = json.loads(ready)
        yield urls
    finally:
        with suppress(ProcessLookupError):
            server.terminate()
        await server.wait()


async def recommend(urls: dict[str, str]) -> None:
    """Read the same query over gRPC and over plain HTTP, each record as soon as it is there."""
    print(f"\nRecommendations for reader {READER}, over gRPC:")
    over_grpc = []
    async with tailrace.connect(urls["grpc"]) as client:
        async for record in client.query("recommendations", user_id=READER, max_results=5):
            book = record.json()
            over_grpc.append(book)
            print(f"  {book['title']}, {book['author']}: bought {book['readers']} times by readers with the same taste")

    question = urlencode({"user_id": READER, "max_results": 5})
    url = f"{urls['http']}/query/recommendations?{question}"
    print(f"The same as lines of JSON, with\n  curl -N '{url}'")
    over_http = await asyncio.to_thread(lines_of, url)
    print(f"  {len(over_http)} lines, {'the same books' if over_http == over_grpc else 'OTHER BOOKS'}")


def lines_of(url: str) -> list[object]:
    """Read lines of JSON over HTTP."""
    with urllib.request.urlopen(url) as response:
        return [json.loads(line) for line in response]


async def create_contacts(urls: dict[str, str]) -> None:
    """Create contacts together, or none of them."""
    run = uuid.uuid4().hex[:8]
    contacts = [
        {"email": f"reader{number}@{run}.example", "name": f"Reader {number}", "city": stock.CITIES[number % 5]}
        for number in range(CONTACTS)
    ]
    async with tailrace.connect(urls["ws"]) as client:

        async def count() -> int:
            async for record in client.query("contact_count"):
                return int(record.json()["contacts"])
            raise LookupError("the source has no record")

        print(f"\n{CONTACTS:,} contacts, over WebSocket: {await count():,} are there before,")
        async with client.bulk("contacts", idempotency_key=run) as bulk:
            for contact in contacts:
                await bulk.send(contact)
            print(f"  {await count():,} while they are sent,")
        assert bulk.result is not None
        print(f"  {await count():,} when they are committed.")

        async with client.bulk("contacts", idempotency_key=run) as again:
            for contact in contacts:
                await again.send(contact)
        assert again.result is not None
        outcome = "the first result is the answer" if again.result.repeated else "THEY ARE SENT AGAIN"
        print(f"  Sent again with the same key: {outcome}, and {await count():,} are there.")

        wrong = [
            {"email": f"new@{run}.example", "name": "New", "city": "Bergen"},
            {"email": f"lost@{run}.example", "name": "Lost", "city": "Atlantis"},
            contacts[3],
        ]
        try:
            async with client.bulk("contacts") as refused:
                await refused.send_all(wrong)
        except BulkRefused as error:
            print("  Three more, with an unknown city and an e-mail that is taken, are refused:")
            for problem in record_problems(error):
                print(f"    record {problem.index}: {problem.kind.value}: {problem.problem}")
        print(f"  {await count():,} are there.")


class LetterRoom:
    """Three workers, and the letters that they write."""

    def __init__(self, urls: dict[str, str]) -> None:
        self._urls = urls
        self.written: Counter[str] = Counter()
        self.order: list[str] = []
        self.changed = asyncio.Condition()

    async def write(self, worker: str, url: str) -> None:
        """Write letters, at most four at the same time, until this is cancelled."""
        async with tailrace.connect(url) as client:
            async for delivery in client.work("letters", credit=4):
                letter = delivery.json()
                if letter["to"] is None:
                    # Nobody will be able to do it.
                    await delivery.reject("no address", dead_letter=True)
                    outcome = "without address"
                elif letter["to"] % 20 == 0 and delivery.attempt == 1:
                    # Somebody may be, a little later.
                    await delivery.reject("no envelope at hand", delay=0.2)
                    continue
                else:
                    await asyncio.sleep(0.01)  # Writing takes time.
                    await delivery.ack()
                    outcome = worker
                async with self.changed:
                    self.written[outcome] += 1
                    self.order.append(letter["kind"])
                    self.changed.notify_all()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None, None]:
        """Let the workers work while the block runs: two over gRPC, one over WebSocket."""
        urls = {"Ada": self._urls["grpc"], "Ben": self._urls["grpc"], "Cleo": self._urls["ws"]}
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self.write(name, url)) for name, url in urls.items()]
            yield
            for worker in workers:
                worker.cancel()

    async def wait_for(self, letters: int) -> None:
        """Wait until so many are done."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.written.total() >= letters)


async def order_letters(url: str, letters: list[dict[str, object]], *, priority: int = 0) -> None:
    """Order letters: all of them are in the queue at once, or none is."""
    async with tailrace.connect(url) as client, client.bulk("letters", priority=priority) as bulk:
        await bulk.send_all(letters)


async def write_letters(urls: dict[str, str], *, once: bool) -> None:
    """Let three workers write letters; without ``once``, until this is cancelled."""
    print(f"\n{LETTERS} letters, one of them without an address, and then one in a hurry, for three workers:")
    room = LetterRoom(urls)
    await order_letters(urls["grpc"], [{"kind": "offer", "to": number or None} for number in range(LETTERS)])
    await order_letters(urls["ws"], [{"kind": "urgent", "to": 1}], priority=10)
    async with room.open():
        total = LETTERS + 1
        await room.wait_for(total)
        for who, number in sorted(room.written.items()):
            print(f"  {who}: {number}")
        print(f"  The urgent one, ordered last, was number {room.order.index('urgent') + 1} of {total}.")
        async with tailrace.connect(urls["grpc"]) as client:
            figures = await client.queue_figures("letters")
            print(f"  {figures.ready} letters wait, {figures.dead} is among the dead letters.")
        while not once:
            print(f"\nOne more letter a second until Ctrl-C; {room.written.total()} were done. Try\n  {hint(urls)}")
            for number in range(1, 11):
                await order_letters(urls["grpc"], [{"kind": "offer", "to": number}])
                total += 1
                await room.wait_for(total)
                await asyncio.sleep(1)


def hint(urls: dict[str, str]) -> str:
    """Return a command to try beside the running shop."""
    return f"tailrace queue letters --server {urls['grpc']}"


async def main() -> None:
    """Run the shop."""
    parser = argparse.ArgumentParser(description="A bookshop whose services talk in records.")
    parser.add_argument("--once", action="store_true", help="end when everything was shown")
    parser.add_argument("--database", metavar="URL", help="postgresql://…; a file of SQLite by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tailrace-bookshop-") as folder:
        database = arguments.database or f"sqlite:{folder}/shop.sqlite"
        await stock.prepare(database)
        async with running_server(Path(folder), database) as urls:
            kind = database.partition(":")[0]
            print(f"The bookshop, on {kind}: {urls['grpc']}  {urls['ws']}  {urls['http']}")
            await recommend(urls)
            await create_contacts(urls)
            await write_letters(urls, once=arguments.once)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what it shows is shown at once
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
