"""Credit as it is seen on the network: at no moment more is on its way to a consumer than it has granted."""

from __future__ import annotations

import secrets

import pytest
from cells import WIRED_RECORD_CELLS, RecordCell
from manifest import proves
from message_faults import Direction
from servers import LocalServer
from soak import SOAK
from tcp_proxy import TcpProxy

from tailrace_client_download_api import Delivery

SIZE = 100_000
"""Bytes of a record: more than all that is around the records of a test."""
CREDIT = 10
ROUNDS = 200 if SOAK else 15

pytestmark = pytest.mark.record_cells(WIRED_RECORD_CELLS)


@proves("REC-8")
async def test_never_more_than_the_credit_is_in_transit_on_the_network(
    record_server: LocalServer, record_cell: RecordCell
) -> None:
    feeder = record_server.connect(record_cell.transport)
    # Nothing that could be made smaller on the way.
    text = secrets.token_urlsafe(SIZE)[:SIZE]
    async with feeder.bulk("tasks") as bulk:
        for number in range(ROUNDS + 3 * CREDIT):
            await bulk.send({"n": number, "text": text})
    async with TcpProxy(record_server.url(record_cell.transport)) as proxy:
        client = record_server.connect(record_cell.transport, url=proxy.url)
        async with client.work("tasks", credit=CREDIT) as consumer:
            held: list[Delivery] = []
            answered = 0

            def in_transit() -> int:
                """Count the records that have come over the network and were not answered."""
                return proxy.passed[Direction.TO_CLIENT] // SIZE - answered

            async for delivery in consumer:
                held.append(delivery)
                if len(held) < CREDIT:
                    continue
                # The server says that it has taken note behind everything that it has delivered before.
                await consumer.set_credit(CREDIT)
                assert in_transit() == CREDIT
                assert (await feeder.queue_figures("tasks")).in_flight == CREDIT
                if answered >= ROUNDS:
                    break
                for _ in range(1 + answered % 3):
                    first = held.pop(0)
                    # Nothing may have come for an answer that is not given yet.
                    assert in_transit() <= CREDIT
                    answered += 1
                    await first.ack()
