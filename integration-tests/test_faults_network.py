"""Networks that harm any one message of an upload or of a reader: each of them, one after the other."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import pytest
from cells import PROCESS_CELLS, Cell
from manifest import proves
from message_faults import CUTS, Direction, Harm, MessageFault
from servers import LocalServer, NewServer
from soak import SEED, SOAK
from tcp_proxy import TcpProxy
from witnesses import Witness

from tailrace_client_upload_api import UploadRequest, UploadSession
from tailrace_common_api import Metadata, ResourceState, Status, TailraceError
from tailrace_impl_common import ConnectedClient, head_of

ResultT = TypeVar("ResultT")

SOURCE = random.Random(SEED).randbytes(40_000)
PIECE = 8_000
KEEPALIVE = 0.5
"""Seconds between two signs of life, and to answer one: what is stalled is found by them."""
PATIENCE = 1.5
"""Seconds after which a network cuts connections on which a harmed message has left nothing but silence."""
MOST_MESSAGES = 80
MOST_ATTEMPTS = 20
PAUSE = 0.2
"""Seconds between two attempts to begin."""

CORRUPT = frozenset({Harm.CORRUPT_HEADER, Harm.CORRUPT_PAYLOAD})
"""What may make another request of a request, which the server refuses for what it says. It takes a change that TCP
does not find, and no TLS."""

FAILED_REASON = re.compile("the head of the [0-9]+ bytes sent is ")
"""Why a resource may end as FAILED here, in the only case in which it may: the head in the message that ends an upload
was changed, so that the uploader seems to have sent other bytes."""

EVERY_HARM = pytest.mark.parametrize("harm", list(Harm), ids=[harm.value for harm in Harm])
BOTH_DIRECTIONS = pytest.mark.parametrize("direction", list(Direction), ids=[each.value for each in Direction])


def connect(server: LocalServer, cell: Cell, proxy: TcpProxy) -> ConnectedClient:
    return server.connect(
        cell.transport,
        url=proxy.url,
        chunk_size=4096,
        download_window=16 * 1024,
        keepalive_interval=KEEPALIVE,
        keepalive_timeout=KEEPALIVE,
        connect_timeout=2.0,
        finish_timeout=5.0,
        answer_timeout=5.0,
    )


def numbers(harm: Harm) -> range:
    """Return which messages are harmed: a check takes all where that is quick, and some where it is not."""
    step = 1 if SOAK or harm in CUTS else 7 if harm is Harm.STALL else 3
    return range(1 + SEED % step, MOST_MESSAGES, step)


async def prefix(size: int) -> AsyncGenerator[bytes, None]:
    yield SOURCE[:size]


async def opened(connect: Callable[[], ConnectedClient], key: str) -> tuple[ConnectedClient, UploadSession]:
    """Open an upload under a key as a program does it that begins again: who was never there is not waited for."""
    for _ in range(MOST_ATTEMPTS):
        client = connect()
        session = client.start_upload(UploadRequest(metadata=Metadata(name="a"), idempotency_key=key, prefix=prefix))
        try:
            await session.open()
        except TailraceError:
            await client.close()
            await asyncio.sleep(PAUSE)
            continue
        return client, session
    raise AssertionError(f"no upload could be opened in {MOST_ATTEMPTS} attempts")


async def upload(session: UploadSession) -> Status:
    for start in range(session.offset, len(SOURCE), PIECE):
        await session.write(SOURCE[start : start + PIECE])
        await session.flush()
    return await session.finish()


async def patiently(proxy: TcpProxy, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Return what ``work`` returns; a connection on which nothing happens is cut, as somebody does in the end.

    A changed bit that TCP has not found can turn a message into the beginning of one that never becomes whole. Nobody
    can tell that from a sender that is slow.
    """
    task = asyncio.ensure_future(work)
    while not (await asyncio.wait((task,), timeout=PATIENCE))[0]:
        proxy.cut()
    return task.result()


@pytest.mark.cells(PROCESS_CELLS)
@BOTH_DIRECTIONS
@EVERY_HARM
@pytest.mark.timeout(3600 if SOAK else 400)
@proves("UPL-9", "RES-5")
async def test_an_upload_survives_harm_to_any_message(
    new_server: NewServer, cell: Cell, harm: Harm, direction: Direction, caplog: pytest.LogCaptureFixture
) -> None:
    # What this library says of frames that nobody has sent is not ours.
    caplog.set_level(logging.CRITICAL, logger="grpc")
    server = await new_server(checkpoint_interval=0.0)
    reader = server.connect(cell.transport)
    for number in numbers(harm):
        fault = MessageFault(direction, number, harm, SEED)
        async with TcpProxy(server.url(cell.transport)) as proxy:
            proxy.fault = fault
            connecting = partial(connect, server, cell, proxy)
            client, session = await opened(connecting, f"{number}")
            witness = Witness(reader, session.id, SOURCE)
            try:
                status = await patiently(proxy, upload(session))
            except TailraceError:
                # A request to reopen may have become another one, which was refused: the program begins again.
                assert harm in CORRUPT
                await client.close()
                if (ended := await reader.status(session.id)).state is ResourceState.FAILED:
                    assert FAILED_REASON.match(ended.reason or "")
                    await witness.close()
                    continue
                client, session = await opened(connecting, f"{number}")
                status = await upload(session)
            assert (status.state, status.size, status.head) == (ResourceState.COMPLETED, len(SOURCE), head_of(SOURCE))
            assert (await witness.end()).head == status.head
            await client.close()
        if not fault.done:
            # There are not so many messages.
            break
    assert number > 5


@pytest.mark.cells(PROCESS_CELLS)
@BOTH_DIRECTIONS
@EVERY_HARM
@pytest.mark.timeout(3600 if SOAK else 400)
@proves("DWN-5", "RES-5")
async def test_a_reader_survives_harm_to_any_message(
    new_server: NewServer, cell: Cell, harm: Harm, direction: Direction, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="grpc")
    server = await new_server(checkpoint_interval=0.0)
    writer = server.connect(cell.transport)
    for number in numbers(harm):
        fault = MessageFault(direction, number, harm, SEED)
        async with TcpProxy(server.url(cell.transport)) as proxy, writer.upload("a") as session:
            await session.write(SOURCE[:PIECE])
            await session.flush()
            proxy.fault = fault
            client = await reached(partial(connect, server, cell, proxy), session.id)
            witness = Witness(client, session.id, SOURCE, asking=writer if harm in CORRUPT else None)
            for start in range(PIECE, len(SOURCE), PIECE):
                await session.write(SOURCE[start : start + PIECE])
                await session.flush()
            status = await session.finish()
            try:
                last = await patiently(proxy, witness.end())
            except TailraceError:
                # The id in a request was changed; or its headers, which HTTP/2 remembers, so that they come back with
                # every later request of the connection. The reader is told, and another one reads all of it.
                assert harm in CORRUPT
                await witness.close()
                last = await Witness(writer, session.id, SOURCE).end()
            assert (last.state, last.size, last.head) == (status.state, status.size, status.head)
            await client.close()
        if not fault.done:
            # There are not so many messages.
            break
    assert number > 5


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.timeout(3600 if SOAK else 400)
@proves("UPL-9", "DWN-5", "RES-5")
async def test_both_directions_survive_cuts_after_any_number_of_bytes(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(checkpoint_interval=0.0)
    chance = random.Random(SEED)
    async with TcpProxy(server.url(cell.transport)) as proxy, connect(server, cell, proxy) as client:
        for _ in range(300 if SOAK else 15):
            session = client.start_upload(UploadRequest(metadata=Metadata(name="a"), prefix=prefix))
            await session.open()
            witness = Witness(client, session.id, SOURCE)
            # Whoever is there is cut off at once, and the next ones where chance wants it.
            proxy.cut_after = {direction: chance.randrange(1, 2 * len(SOURCE)) for direction in Direction}
            proxy.cut()
            status = await upload(session)
            assert (status.state, status.head) == (ResourceState.COMPLETED, head_of(SOURCE))
            assert (await witness.end()).head == status.head
            proxy.cut_after.clear()


async def reached(connect: Callable[[], ConnectedClient], id: str) -> ConnectedClient:
    """Return a client that has read the status of a resource, so that it comes back by itself from now on."""
    for _ in range(MOST_ATTEMPTS):
        client = connect()
        try:
            await client.status(id)
        except TailraceError:
            await client.close()
            await asyncio.sleep(PAUSE)
            continue
        return client
    raise AssertionError(f"the server could not be reached in {MOST_ATTEMPTS} attempts")
