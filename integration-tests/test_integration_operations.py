"""Operating a server: its end in order, peers that are gone without a word, and what is seen of it meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cells import PROCESS_CELLS, WIRED_CELLS, Cell, Transport
from conversations import Conversation, HandUpload, eventually
from manifest import proves
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from server_process import DEADLINE, ServerProcess, spawn
from servers import LocalServer, NewServer
from tcp_proxy import TcpProxy

from tailrace_common_api import (
    ClientSettings,
    ConnectionLost,
    DamagedBlock,
    FromOffset,
    GoingAway,
    NotFound,
    Page,
    ResourceState,
    TailraceError,
    error_classes,
)
from tailrace_impl_common import ConnectedClient, _tracing, head_of
from tailrace_impl_common.messages import Chunk, Follow, Read, Started, Watch
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_websocket import connect as connect_websocket

NewProcess = Callable[..., ServerProcess]

# Long enough for who lives on a busy machine to answer in.
IMPATIENT: dict[str, Any] = {"keepalive_interval": 0.2, "keepalive_timeout": 2.0}
NEVER: dict[str, Any] = {"keepalive_interval": 100_000.0, "keepalive_timeout": 100_000.0}


@asynccontextmanager
async def connected(url: str, **settings: Any) -> AsyncIterator[ConnectedClient]:
    """Connect to a server in another process."""
    connect = connect_grpc if url.startswith("grpc") else connect_websocket
    async with connect(url, ClientSettings(**settings)) as client:
        yield client


async def started(new_server_process: NewProcess, tmp_path: Path, settings: str = "", **options: object) -> Any:
    """Start a server with a settings file."""
    (tmp_path / "tailrace.toml").write_text(settings)
    return await asyncio.to_thread(lambda: new_server_process(**options))


async def ask(url: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE) as client:
        return await client.get(path)


class Stalled:
    """A client of HTTP that asks for a resource and does not read the answer."""

    def __init__(self, url: str, id: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = parts.hostname, parts.port
        self._id = id

    async def __aenter__(self) -> None:
        reader, self._writer = await asyncio.open_connection(*self._address, limit=1024)
        self._writer.write(f"GET /r/{self._id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()


# The end in order


@pytest.mark.cells(WIRED_CELLS)
@proves("CON-1")
async def test_while_a_server_drains_new_work_is_refused_and_old_work_ends(
    server: LocalServer, cell: Cell, client: ConnectedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"kept")
    await upload.announced(4)
    followers = [
        await Conversation.begin(client.connection, request)
        for request in (Follow(id=upload.id, start=FromOffset(), window=100), Watch(id=upload.id))
    ]
    await followers[0].receive(Chunk)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def wait(*_: object, **__: object) -> Page:
        asked.set()
        await answer.wait()
        return Page((), None)

    monkeypatch.setattr(server.manager, "list", wait)
    running = asyncio.ensure_future(client.list_page())
    await asked.wait()
    closing = asyncio.ensure_future(server.stop_transports(grace=1000.0))
    for conversation in (upload, *followers):
        error = await conversation.error()
        assert isinstance(error, GoingAway)
        assert error.retry_after > 0
        await conversation.close()
    # The question that ran before holds the server up, and so it can be seen what becomes of others meanwhile.
    newcomer = server.connect(cell.transport, url=server.url(cell.transport))
    for known in (client, newcomer):
        refused = await Conversation.refused(known.connection, Watch(id="0" * 32))
        assert isinstance(refused, GoingAway)
        assert refused.retry_after > 0
    assert not closing.done()
    answer.set()
    assert (await running).statuses == ()
    await closing
    assert (await server.manager.reopen(upload.id, upload.token)).snapshot.size == 4


@pytest.mark.cells(PROCESS_CELLS)
@proves("CON-1")
async def test_a_terminated_server_tells_everyone_and_uploads_go_on_at_the_next_one(
    new_server_process: NewProcess, cell: Cell, tmp_path: Path
) -> None:
    server = await started(new_server_process, tmp_path)
    async with connected(server.url(cell.transport)) as client:
        upload = await HandUpload.open(client.connection)
        await upload.chunk(b"before")
        await upload.announced(6)
        follower = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(), window=100))
        assert bytes((await follower.receive(Chunk)).data) == b"before"
        idle = await HandUpload.open(client.connection)
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        for conversation in (upload, follower, idle):
            error = await conversation.error()
            assert isinstance(error, GoingAway)
            assert error.retry_after > 0
            await conversation.close()
        assert await stopping == 0
    await asyncio.to_thread(server.start)
    async with connected(server.url(cell.transport)) as client:
        assert (await client.status(upload.id)).state is ResourceState.IN_PROGRESS
        assert (await client.status(idle.id)).state is ResourceState.INITIATED
        again = await HandUpload.reopen(client.connection, upload.id, upload.token, b"before")
        assert again.opened.offset == 6
        await again.chunk(b" and after")
        finished = await again.finished()
        assert finished.status is not None
        assert (finished.status.state, finished.status.head) == (ResourceState.COMPLETED, head_of(b"before and after"))
        assert await client.open(upload.id).read() == b"before and after"
    assert await asyncio.to_thread(server.stop) == 0


async def _large(client: ConnectedClient, mebibytes: int = 32) -> str:
    """Upload more than the systems between two processes hold."""
    async with client.upload("large") as upload:
        for _ in range(mebibytes):
            await upload.write(bytes(2**20))
    return upload.id


@pytest.mark.cells(PROCESS_CELLS)
@proves("CON-1")
async def test_whoever_does_not_read_holds_a_server_up_for_its_grace_and_no_longer(
    new_server_process: NewProcess, cell: Cell, tmp_path: Path
) -> None:
    server = await started(new_server_process, tmp_path, "[serve]\ngrace = 0.5\n")
    async with connected(server.url(cell.transport), **NEVER) as client:
        large = await _large(client)
        async with (
            Stalled(server.urls["http"], large),
            TcpProxy(server.url(cell.transport)) as proxy,
            connected(proxy.url, **NEVER) as stalled,
        ):
            reader = await Conversation.begin(
                stalled.connection, Follow(id=large, start=FromOffset(), window=16 * 2**20)
            )
            await reader.receive(Started)
            proxy.stall()
            # The pipe between is full, and stays so: only the grace ends this.
            assert await asyncio.to_thread(server.stop) == 0
            proxy.cut()
            await reader.close()


@pytest.mark.cells(PROCESS_CELLS)
@proves("CON-1")
async def test_readiness_goes_first_and_a_second_signal_ends_the_server_at_once(
    new_server_process: NewProcess, cell: Cell, tmp_path: Path
) -> None:
    server = await started(new_server_process, tmp_path, "[serve]\ngrace = 100000.0\n")
    async with connected(server.url(cell.transport)) as client:
        large = await _large(client)
        upload = await HandUpload.open(client.connection)
        await upload.chunk(b"kept")
        await upload.announced(4)
        assert (await ask(server.urls["http"], "/readyz")).status_code == 200
        async with Stalled(server.urls["http"], large):
            # Another one than that which stops it below: the same one twice in a moment counts once.
            os.kill(server.pid, signal.SIGINT)

            async def unready() -> bool:
                answer = await ask(server.urls["http"], "/readyz")
                return (answer.status_code, answer.text) == (503, "not ready: shutting down\n")

            await eventually(unready)
            assert isinstance(await upload.error(), GoingAway)
            await upload.close()
            # The process and its loop live on, but for nobody who comes now.
            assert (await ask(server.urls["http"], "/healthz")).status_code == 200
            refused = await ask(server.urls["http"], f"/r/{large}")
            assert (refused.status_code, refused.json()["code"]) == (503, "going_away")
            assert int(refused.headers["retry-after"]) >= 1
            assert await asyncio.to_thread(server.stop) == 130
    await asyncio.to_thread(server.start)
    async with connected(server.url(cell.transport)) as client:
        again = await HandUpload.reopen(client.connection, upload.id, upload.token, b"kept")
        assert again.opened.offset == 4
        assert (await again.finished()).status is not None


# Peers that are gone without a word


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-8")
async def test_a_dead_follower_is_found_by_keep_alive(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(transport_settings=IMPATIENT)
    source = await HandUpload.open(server.connect(cell.transport).connection)
    async with TcpProxy(server.url(cell.transport)) as proxy:
        client = server.connect(cell.transport, url=proxy.url, **NEVER)
        followers = [
            await Conversation.begin(client.connection, request)
            for request in (Follow(id=source.id, start=FromOffset(), window=100), Watch(id=source.id))
        ]
        await followers[0].receive(Started)
        await eventually(lambda: _in_progress(server, "Follow", "Watch", expected=2))
        proxy.stall()
        await eventually(lambda: _in_progress(server, "Follow", "Watch", expected=0))
        proxy.cut()
        for follower in followers:
            await follower.close()
    # Who is not behind the dead connection was not touched.
    await source.chunk(b"alive")
    assert (await source.finished()).status is not None


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-8")
async def test_an_idle_connection_that_lives_is_left_alone(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(transport_settings=IMPATIENT)
    client = server.connect(cell.transport, **IMPATIENT)
    upload = await HandUpload.open(client.connection)
    follower = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(), window=100))
    await follower.receive(Started)
    # Another one, whose death shows that all the time was there in which the idle ones could have been taken for dead.
    async with TcpProxy(server.url(cell.transport)) as proxy:
        dead = await HandUpload.open(server.connect(cell.transport, url=proxy.url, **NEVER).connection)
        proxy.stall()
        await eventually(lambda: _in_progress(server, "OpenUpload", expected=1))
        proxy.cut()
        await dead.close()
    await upload.chunk(b"still there")
    assert bytes((await follower.receive(Chunk)).data) == b"still there"
    assert (await upload.finished()).status is not None
    await follower.rest()
    await follower.close()


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-8")
async def test_a_server_that_is_stopped_in_its_tracks_is_found_by_its_clients(
    new_server_process: NewProcess, cell: Cell, tmp_path: Path
) -> None:
    server = await started(new_server_process, tmp_path)
    async with connected(server.url(cell.transport), **IMPATIENT) as client:
        upload = await HandUpload.open(client.connection)
        await upload.chunk(b"kept")
        await upload.announced(4)
        follower = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(), window=100))
        await follower.receive(Chunk)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for conversation in (upload, follower):
                assert isinstance(await conversation.error(), ConnectionLost)
                await conversation.close()
        finally:
            os.kill(server.pid, signal.SIGCONT)
    async with connected(server.url(cell.transport)) as client:
        again = await HandUpload.reopen(client.connection, upload.id, upload.token, b"kept")
        assert again.opened.offset == 4
        assert (await again.finished()).status is not None


@pytest.fixture
def stopped_client(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start commands that are ended however they are."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        running.append(spawn(tmp_path, *arguments))
        return running[-1]

    yield start
    for process in running:
        with process:
            process.kill()


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-8")
async def test_a_client_that_is_stopped_in_its_tracks_is_found_by_its_server(
    new_server_process: NewProcess,
    stopped_client: Callable[..., subprocess.Popen[bytes]],
    cell: Cell,
    tmp_path: Path,
) -> None:
    quick = "keepalive_interval = 0.2\nkeepalive_timeout = 2.0\n"
    server = await started(new_server_process, tmp_path, f"[grpc]\n{quick}[http]\n{quick}", upload_grace=0.05)
    url = server.url(cell.transport)
    process = stopped_client("upload", "-", "--server", url, "--json")
    assert process.stdout is not None
    opened = json.loads(await asyncio.to_thread(process.stdout.readline))
    async with connected(url) as client, client.open(opened["reference"]) as resource:
        process.send_signal(signal.SIGSTOP)
        async for status in resource.statuses():
            last = status
        assert (last.state, last.reason) == (ResourceState.FAILED, "uploader lost")
    process.kill()


# What is seen


async def _figures(server: LocalServer) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return what a scrape of the server says, by name of the sample."""
    _, body = await asyncio.to_thread(server.manager.telemetry.exposition)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


async def _in_progress(server: LocalServer, *operations: str, expected: int) -> bool:
    samples = (await _figures(server)).get("tailrace_requests_in_progress", [])
    return sum(value for labels, value in samples if labels["operation"] in operations) == expected


@pytest.mark.cells(WIRED_CELLS)
async def test_labels_of_a_random_workload_are_few_and_name_nobody(server: LocalServer, cell: Cell) -> None:
    await server.listen(Transport.WEBSOCKET)
    choose = random.Random(20261121)
    secrets: set[str] = set()
    client = server.connect(cell.transport)
    for number in range(60):
        name = f"name-of-{number}-{choose.randrange(10**9)}"
        secrets.add(name)
        upload = await HandUpload.open(client.connection, name, labels={name: name}, idempotency_key=name)
        secrets |= {upload.id, upload.token}
        data = choose.randbytes(choose.randrange(1, 1000))
        await upload.chunk(data)
        match choose.randrange(4):
            case 0:
                await upload.abort(f"reason-{name}")
            case 1:
                await upload.send(upload.make(b"bad", hash=bytes(8)))
                await upload.error()
                await upload.close()
            case 2:
                await upload.finished()
                assert await client.open(upload.id).read() == data
            case _:
                await upload.close()
                await client.delete(upload.id)
        with pytest.raises(TailraceError):
            await client.open(choose.choice(["0" * 32, name, upload.id])).read(5000, 6000)
    answer = await ask(server.url(Transport.WEBSOCKET, "http"), "/metrics")
    assert answer.status_code == 200
    for secret in secrets:
        assert secret not in answer.text
    known = {
        "transport": {"grpc", "websocket", "http", "inprocess"},
        "code": {cls.code for cls in error_classes()} | {"ok", "cancelled"},
        "event": {"created", "completed", "failed", "deleted"},
    }
    figures = await _figures(server)
    own = {name: samples for name, samples in figures.items() if name.startswith("tailrace_")}
    for name, samples in own.items():
        for labels, _ in samples:
            assert labels.keys() <= {"transport", "operation", "code", "event", "le", "limit", "version"}, name
            for label, values in known.items():
                assert label not in labels or labels[label] in values, (name, labels)
    assert sum(map(len, own.values())) < 400
    events = {labels["event"]: value for labels, value in own["tailrace_resource_events_total"]}
    assert events["created"] == 60
    received = sum(value for _, value in own["tailrace_received_bytes_total"])
    assert received > 60


@pytest.mark.cells(PROCESS_CELLS)
async def test_failed_requests_are_logged_once_as_objects(
    new_server_process: NewProcess, cell: Cell, tmp_path: Path
) -> None:
    server = await started(new_server_process, tmp_path, '[serve]\nlog_format = "json"\n')
    async with connected(server.url(cell.transport)) as client:
        upload = await HandUpload.open(client.connection)
        await upload.chunk(b"x")
        await upload.finished()
    assert await asyncio.to_thread(server.stop) == 0
    # Warnings and above are logged by all server processes of the suite; none of this was one.
    assert server.log == ""
    await asyncio.to_thread((server.data / "resources" / upload.id / "data").write_bytes, b"")
    await asyncio.to_thread(server.start)
    async with connected(server.url(cell.transport)) as client:
        reader = await Conversation.begin(client.connection, Read(id=upload.id))
        assert isinstance(await reader.error(), DamagedBlock)
        await reader.close()
    assert await asyncio.to_thread(server.stop) == 0
    (line,) = server.log.splitlines()
    record = json.loads(line)
    assert (record["level"], record["code"], record["resource"]) == ("warning", "damaged_block", upload.id)
    assert record["message"].startswith("Read failed: ")
    assert "127.0.0.1" in record["peer"]
    assert record["time"].endswith("Z")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # A provider of one test only: the process has room for one.
    monkeypatch.setattr(_tracing, "_tracer", lambda: provider.get_tracer("tailrace"))
    yield exporter
    provider.shutdown()


async def test_a_trace_goes_on_at_the_server(
    server: LocalServer, client: ConnectedClient, spans: InMemorySpanExporter
) -> None:
    with _tracing._tracer().start_as_current_span("caller") as caller:
        upload = await HandUpload.open(client.connection)
        await upload.chunk(b"traced")
        await upload.finished()
        assert await client.open(upload.id).read() == b"traced"
        await client.status(upload.id)
        with pytest.raises(NotFound):
            await client.status("0" * 32)
    context = caller.get_span_context()
    served = {"OpenUpload", "Read", "GetStatus"}
    await eventually(lambda: len(spans.get_finished_spans()) >= 5)
    ended = [span for span in spans.get_finished_spans() if span.name != "caller"]
    assert {span.name for span in ended} == {f"tailrace {name}" for name in served}
    for span in ended:
        assert span.parent is not None
        assert (span.parent.trace_id, span.parent.span_id) == (context.trace_id, context.span_id)
        assert span.attributes is not None
        assert span.attributes.keys() <= {"rpc.system", "rpc.method", "tailrace.transport", "error.type"}
    errors = [span.attributes["error.type"] for span in ended if span.attributes and "error.type" in span.attributes]
    assert errors == ["not_found"]
    # What comes without a trace begins one of its own.
    spans.clear()
    await client.status(upload.id)
    await eventually(lambda: len(spans.get_finished_spans()) == 1)
    assert spans.get_finished_spans()[0].parent is None
