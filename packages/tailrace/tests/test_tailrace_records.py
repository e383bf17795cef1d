"""Bulks, queries and work of connected clients, asynchronous and blocking, against a real server."""

import asyncio
from collections.abc import Iterator

import pytest
from tailrace_processes import Server
from tailrace_record_server import serving_records

import tailrace
from tailrace_common_api import BulkRefused, RecordEndNotFound, record_problems

NOBODY = "grpc://127.0.0.1:9"
"""A URL at which nobody listens."""


@pytest.fixture(scope="module")
def record_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    queues = "".join(f"[queues.{name}-{scheme}]\n" for name in ("tasks", "jobs") for scheme in ("grpc", "ws"))
    with serving_records(tmp_path_factory.mktemp("records"), queues) as running:
        yield running


@pytest.fixture(params=["grpc", "ws"])
def scheme(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


async def test_a_connected_client_sends_asks_and_works(record_server: Server, scheme: str) -> None:
    # The second one of its ways is there.
    async with tailrace.connect([NOBODY, record_server.urls[scheme]]) as client:
        async with client.bulk("contacts") as bulk:
            sent = await bulk.send_all([{"email": "abc"}, {"email": "def"}])
        assert bulk.result is not None
        assert bulk.result.records == sent == 2
        numbers = [record.json()["number"] async for record in client.query("numbers", word="", max_results=3)]
        assert numbers == [1, 2, 3]
        queue = f"tasks-{scheme}"
        async with client.bulk(queue) as work:
            await work.send_all([{"n": 1}, {"n": 2}])
        async with client.work(queue, credit=1) as worker:
            done = []
            async for delivery in worker:
                done.append(delivery.json()["n"])
                await delivery.ack()
                if len(done) == 2:
                    break
        assert done == [1, 2]
        assert (await client.queue_figures(queue)).ready == 0


def test_blocking_code_sends_asks_and_works(record_server: Server, scheme: str) -> None:
    with tailrace.sync.connect(record_server.urls[scheme]) as client:
        with client.bulk("contacts") as bulk:
            bulk.send({"email": "abc"})
        assert bulk.result is not None
        assert bulk.result.records == 1
        with pytest.raises(BulkRefused) as refused, client.bulk("contacts") as bad:
            bad.send_all([{"email": "abc"}, {"email": ""}])
        assert [problem.index for problem in record_problems(refused.value)] == [1]
        with client.query("numbers", word="", max_results=3) as stream:
            assert [record.json()["number"] for record in stream] == [1, 2, 3]
        queue = f"jobs-{scheme}"
        with client.bulk(queue) as work:
            work.send({"n": 1})
        with client.work(queue, credit=1) as worker:
            for delivery in worker:
                assert delivery.json() == {"n": 1}
                delivery.ack()
                break
        assert client.queue_figures(queue).ready == 0
        with pytest.raises(RecordEndNotFound):
            client.queue_figures("nowhere")


async def test_blocking_clients_live_beside_a_loop(record_server: Server, scheme: str) -> None:
    def count() -> int:
        with tailrace.sync.connect(record_server.urls[scheme]) as client:
            return sum(1 for _ in client.query("numbers", word="", max_results=1000))

    assert list(await asyncio.gather(*(asyncio.to_thread(count) for _ in range(2)))) == [1000, 1000]
