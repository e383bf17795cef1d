"""Rows of connections: what an idle one costs the server, and how soon the next byte comes after one was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import workloads
from cases import CONNECTIONS, Meter, Run, Sample, transport_case
from cutting_proxy import CuttingProxy
from processes import OURSELVES, resident
from raw_socket import random_message
from server import ServerProcess

from tailrace_client_upload_api import UploadSession
from tailrace_common_api import TailraceError
from tailrace_impl_common import ConnectedClient

KIBIBYTE = 1024
_BIG_MESSAGES = 4
_AT_ONCE = 50
_REST = 5.0
"""Seconds after which a server with nothing to do has given back what malloc kept."""


@asynccontextmanager
async def live_line_stream(
    writing: ConnectedClient, reading: ConnectedClient
) -> AsyncGenerator[tuple[UploadSession, AsyncGenerator[bytes, None]], None]:
    """Upload over one client and follow over another; the first line has arrived."""
    session = writing.upload("benchmark", lines=True)
    await session.open()
    async with session, reading.open(session.reference) as resource, aclosing(resource.follow()) as arriving:
        await pass_line(session, arriving)
        yield session, arriving


async def pass_line(session: UploadSession, arriving: AsyncGenerator[bytes, None]) -> None:
    """Write a line, and wait until the follower has it."""
    await session.write(workloads.LINE)
    if await anext(arriving) != workloads.LINE:
        raise AssertionError("the follower got something else than the line that was written")


@transport_case(
    "reconnect",
    "connection of a follower cut, to its next byte",
    group=CONNECTIONS,
    unit="ms",
    lower_is_better=True,
)
def reconnect(run: Run, transport: str) -> Sample:
    url, meter, count = run.url(transport), run.meter(), 5
    times: list[float] = []

    async def cut_and_follow() -> None:
        async with (
            CuttingProxy(url) as proxy,
            workloads.connected(url) as writing,
            workloads.connected(proxy.url) as reading,
            live_line_stream(writing, reading) as (session, arriving),
        ):
            with meter:
                for _ in range(count):
                    begin = time.perf_counter()
                    proxy.cut()
                    await pass_line(session, arriving)
                    times.append(time.perf_counter() - begin)

    run.wait(cut_and_follow())
    value = sorted(times)[count // 2] * 1e3
    return meter.sample(value, count=count, more={"max_ms": max(times) * 1e3})


@transport_case(
    "restart",
    "server killed and started again, from ready to the next byte of its uploader at a follower",
    group=CONNECTIONS,
    unit="ms",
    lower_is_better=True,
)
def restart(run: Run, transport: str) -> Sample:
    times: dict[str, float] = {}

    async def restart_and_follow(server: ServerProcess) -> None:
        url = server.urls[transport]
        async with (
            workloads.connected(url) as writing,
            workloads.connected(url) as reading,
            live_line_stream(writing, reading) as (session, arriving),
        ):
            server.kill()
            times["killed"] = time.perf_counter()
            passing = asyncio.create_task(pass_line(session, arriving))
            await asyncio.to_thread(server.start)
            times["ready"] = time.perf_counter()
            await passing
            times["byte"] = time.perf_counter()

    with run.fresh_server() as server, Meter((), OURSELVES) as meter:
        run.wait(restart_and_follow(server))
    more = {
        "from_the_kill_ms": (times["byte"] - times["killed"]) * 1e3,
        "of_it_starting_ms": (times["ready"] - times["killed"]) * 1e3,
    }
    return meter.sample((times["byte"] - times["ready"]) * 1e3, count=1, more=more)


@transport_case(
    "idle",
    "idle follower, resident memory of the server",
    group=CONNECTIONS,
    unit="KiB",
    lower_is_better=True,
    slow=True,
)
def idle(run: Run, transport: str) -> Sample:
    number = run.scale.connections

    async def hold(server: ServerProcess) -> dict[str, int]:
        sizes = {}
        url = server.urls[transport]
        async with AsyncExitStack() as stack:
            writing = await stack.enter_async_context(workloads.connected(url))

            async def connect(count: int) -> list[ConnectedClient]:
                clients: list[ConnectedClient] = []
                while len(clients) < count:
                    entered = [stack.enter_async_context(workloads.connected(url)) for _ in range(_AT_ONCE)]
                    clients += [await client for client in entered]
                return clients

            received: dict[int, int] = {}
            arrived = asyncio.Condition()

            async def follow(client: ConnectedClient, reference: str, follower: int) -> None:
                try:
                    async with client.open(reference) as resource, aclosing(resource.follow_chunks()) as chunks:
                        async for chunk in chunks:
                            async with arrived:
                                received[follower] = received.get(follower, 0) + len(chunk.data)
                                arrived.notify_all()
                except TailraceError as error:
                    received[follower] = -1
                    raise error

            async def wait_for(size: int) -> None:
                async with arrived, asyncio.timeout(60):
                    await arrived.wait_for(lambda: all(received.get(n, 0) >= size for n in range(number)))

            # What the first connections make the server load is not theirs.
            await connect(_AT_ONCE)
            await asyncio.sleep(_REST)
            sizes["start"] = resident(server.pid)
            clients = await connect(number)
            sizes["connected"] = resident(server.pid)
            session = await stack.enter_async_context(writing.upload("benchmark"))
            await session.write(workloads.LINE)
            tasks = [asyncio.create_task(follow(client, session.reference, n)) for n, client in enumerate(clients)]
            await wait_for(len(workloads.LINE))
            await asyncio.sleep(_REST)
            sizes["following"] = resident(server.pid)
            for _ in range(_BIG_MESSAGES):
                await session.write(random_message())
            await wait_for(len(workloads.LINE) + _BIG_MESSAGES * len(random_message()))
            sizes["at_first"] = resident(server.pid)
            await asyncio.sleep(_REST)
            sizes["after"] = resident(server.pid)
            await session.finish()
            await asyncio.gather(*tasks)
        return sizes

    with run.fresh_server() as server, Meter((server.pid,), OURSELVES) as meter:
        sizes = run.wait(hold(server))
    per = {
        name: (sizes[name] - sizes[before]) / number / KIBIBYTE
        for name, before in (
            ("connected", "start"),
            ("following", "start"),
            ("at_first", "following"),
            ("after", "following"),
        )
    }
    more = {
        "of_it_the_connection_KiB": per["connected"],
        f"more_after_{_BIG_MESSAGES}_MiB_to_each_KiB": per["after"],
        "before_a_rest_KiB": per["at_first"],
    }
    return meter.sample(per["following"], count=number, more=more)
