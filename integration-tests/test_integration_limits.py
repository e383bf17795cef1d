"""Quotas, the number of requests that run, and the hooks of an application: who refuses what, and when it is told."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing, suppress
from types import ModuleType
from typing import Any

import pytest
from cells import LASTING_CELLS, Cell
from conversations import HandUpload, eventually
from manifest import proves
from servers import NewServer

from tailrace_client_upload_api import UploadSession
from tailrace_common_api import (
    KIBIBYTE,
    ContextEventKind,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    ResourceFailed,
    ResourceState,
    Status,
    Visibility,
)
from tailrace_impl_common import ConnectedClient
from tailrace_impl_server import _filesystem_storage, _hooks
from tailrace_server_api import ServerHooks, Veto

KIB = KIBIBYTE


async def opened(client: ConnectedClient, name: str, **settings: Any) -> UploadSession:
    """Open an upload, to be ended by the test."""
    upload = client.upload(name, **settings)
    await upload.open()
    return upload


async def write_for_ever(upload: UploadSession, size: int) -> None:
    """Write without ever saying that the input ends: an error must not wait for that."""
    while True:
        await upload.write(b"x" * size)
        await upload.flush()


async def write_until_refused(upload: UploadSession, size: int) -> QuotaExceeded:
    """Return the refusal that ends an upload without end."""
    with pytest.raises(QuotaExceeded) as caught:
        await write_for_ever(upload, size)
    return caught.value


# Quotas


@proves("LIM-1", "UPL-16")
@pytest.mark.parametrize("scope", ["storage", "context"])
async def test_too_many_bytes_are_refused_in_the_middle_of_an_upload(
    new_server: NewServer, cell: Cell, scope: str
) -> None:
    server = await new_server(**{f"max_{scope}_bytes": 100 * KIB}, upload_window=32 * KIB, sweep_interval=0.01)
    client, other = server.connect(cell.transport), server.connect(cell.transport)
    context = await client.create_context()
    first = await opened(client, "first", context=context.id)
    await first.write(bytes(60 * KIB))
    await first.flush()
    greedy = await opened(other, "greedy", context=context.id)
    error = await write_until_refused(greedy, 10 * KIB)
    limit = "bytes in storage" if scope == "storage" else "bytes per context"
    assert (error.limit, error.maximum) == (limit, 100 * KIB)
    assert error.actual > 100 * KIB
    await greedy.abort()
    # What was announced stays, and nobody else is harmed.
    status = await client.status(greedy.id)
    assert status.state is ResourceState.IN_PROGRESS
    assert 60 * KIB + status.size <= 100 * KIB
    assert (await client.get_context(context.id)).bytes == 60 * KIB + status.size
    assert (await first.finish()).size == 60 * KIB
    with pytest.raises(QuotaExceeded):
        await client.upload("declared", context=context.id, length=50 * KIB).open()
    # With room again, the upload goes on where it was.
    await client.delete(first.id)
    again = await HandUpload.reopen(other.connection, greedy.id, greedy.token, b"x" * status.size)
    await again.granted(status.size + 16 * KIB)
    await again.chunk(bytes(16 * KIB))
    finished = await again.finished()
    assert finished.status is not None
    assert (finished.status.state, finished.status.size) == (ResourceState.COMPLETED, status.size + 16 * KIB)


@proves("LIM-1")
async def test_too_many_resources_and_uploads_are_refused_before_they_are_created(
    new_server: NewServer, cell: Cell
) -> None:
    server = await new_server(max_context_resources=2, max_uploads=3)
    client, other = server.connect(cell.transport), server.connect(cell.transport)
    context = await client.create_context()
    uploads = [await opened(client, name, context=context.id) for name in "ab"]
    with pytest.raises(QuotaExceeded) as refused:
        await other.upload("c", context=context.id).open()
    assert (refused.value.limit, refused.value.maximum, refused.value.actual) == ("resources per context", 2, 3)
    elsewhere = await opened(other, "elsewhere")
    with pytest.raises(QuotaExceeded) as refused:
        await client.upload("d").open()
    assert (refused.value.limit, refused.value.maximum, refused.value.actual) == ("unfinished uploads", 3, 4)
    assert len((await client.list_page()).statuses) == 3
    # Ending one gives back its place among the uploads, deleting it that in the context.
    await uploads[0].finish()
    last = await opened(client, "d")
    with pytest.raises(QuotaExceeded):
        await client.upload("e", context=context.id).open()
    await last.abort("enough")
    await client.delete(uploads[0].id)
    again = await opened(client, "e", context=context.id)
    for upload in (uploads[1], elsewhere, again):
        assert (await upload.finish()).state is ResourceState.COMPLETED


@proves("LIM-1")
async def test_a_granted_window_is_reserved_and_given_back(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(max_storage_bytes=100 * KIB, upload_window=100 * KIB, sweep_interval=3600)
    client, other = server.connect(cell.transport), server.connect(cell.transport)
    holder = await HandUpload.open(client.connection)
    assert holder.until == 100 * KIB
    waiting = await HandUpload.open(other.connection)
    # All is reserved and nothing used: this one has to wait, and is not refused.
    assert waiting.until == 0
    await holder.chunk(bytes(10 * KIB))
    await holder.announced(10 * KIB)
    await holder.abort("enough")
    await waiting.granted(90 * KIB)
    await waiting.chunk(bytes(90 * KIB))
    await waiting.granted(90 * KIB + 1)
    await waiting.chunk(b"x")
    error = await waiting.error()
    assert isinstance(error, QuotaExceeded)
    assert (error.limit, error.maximum, error.actual) == ("bytes in storage", 100 * KIB, 100 * KIB + 1)
    await waiting.close()


@proves("LIM-1")
async def test_windows_that_others_do_not_use_starve_nobody(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(max_storage_bytes=100 * KIB, upload_window=100 * KIB, sweep_interval=0.01)
    client, other = server.connect(cell.transport), server.connect(cell.transport)
    idle = await HandUpload.open(client.connection)
    assert idle.until == 100 * KIB
    upload = await opened(other, "busy")
    await upload.write(bytes(60 * KIB))
    assert (await upload.finish()).size == 60 * KIB
    await idle.chunk(bytes(40 * KIB))
    finished = await idle.finished()
    assert finished.status is not None
    assert finished.status.size == 40 * KIB


@pytest.mark.cells(LASTING_CELLS)
@proves("LIM-1")
async def test_quotas_are_right_after_a_restart_without_reading_anything(
    new_server: NewServer, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await new_server(max_storage_bytes=100 * KIB, max_context_resources=12, upload_window=100 * KIB)
    client = server.connect(cell.transport)
    context = await client.create_context()
    for number in range(10):
        async with client.upload(str(number), context=context.id) as upload:
            await upload.write(bytes(5 * KIB))
    running = await opened(client, "running", context=context.id)
    await running.write(bytes(20 * KIB))
    await running.flush()
    loaded: list[str] = []
    load = _filesystem_storage.FilesystemStorage.load

    async def counting(self: _filesystem_storage.FilesystemStorage, id: str) -> object:
        loaded.append(id)
        return await load(self, id)

    monkeypatch.setattr(_filesystem_storage.FilesystemStorage, "load", counting)
    await server.restart()
    assert loaded == [running.id]
    client = server.connect(cell.transport)
    known = await client.get_context(context.id)
    assert (known.resources, known.bytes) == (11, 70 * KIB)
    with pytest.raises(QuotaExceeded):
        await client.upload("too long", length=30 * KIB + 1).open()
    async with client.upload("fits", context=context.id) as upload:
        await upload.write(bytes(30 * KIB))
    with pytest.raises(QuotaExceeded):
        await client.upload("one more", context=context.id).open()


@proves("LIM-1")
async def test_too_many_requests_are_refused_with_a_time_to_come_back(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(max_running_requests=3)
    client = server.connect(cell.transport)
    impatient = server.connect(cell.transport, reconnect_timeout=0.0)
    upload = await opened(client, "a")
    await upload.write(b"x")
    await upload.flush()
    async with client.open(upload.id) as resource:
        followers = [resource.follow(), resource.follow()]
        for follower in followers:
            assert await anext(follower) == b"x"
        with pytest.raises(Overloaded) as refused:
            await impatient.status(upload.id)
        assert refused.value.what == "requests"
        assert refused.value.retry_after > 0
        with pytest.raises(Overloaded):
            await impatient.upload("b").open()
        await followers[0].aclose()

        async def let_in() -> bool:
            with suppress(Overloaded):
                await impatient.status(upload.id)
                return True
            return False

        await eventually(let_in)
        await followers[1].aclose()
    assert (await upload.finish()).size == 1


# Hooks


class Application(ServerHooks):
    """Remembers what it is told, and refuses what a test has put in."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []
        self.vetoes: dict[str, str] = {}

    def _tell(self, name: str, status: Status) -> None:
        self.told.append((name, status.id, status.size))
        if name in self.vetoes:
            raise Veto(self.vetoes[name])

    async def on_created(self, status: Status, principal: str) -> None:
        self._tell("created", status)

    async def on_growth(self, status: Status) -> None:
        self._tell("growth", status)

    async def on_completed(self, status: Status) -> None:
        self._tell("completed", status)

    async def on_failed(self, status: Status) -> None:
        self._tell("failed", status)

    def of(self, id: str) -> list[str]:
        return [name for name, told, _ in self.told if told == id]


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Application:
    """The hooks that a setting names as `an_application:make`."""
    application = Application()
    module = ModuleType("an_application")
    module.make = lambda: application  # type: ignore[attr-defined]  # a module as an application would have one
    monkeypatch.setitem(sys.modules, "an_application", module)
    return application


@proves("HOO-1")
async def test_hooks_follow_every_resource(new_server: NewServer, cell: Cell, application: Application) -> None:
    server = await new_server(hooks="an_application:make", upload_grace=0.05)
    client = server.connect(cell.transport)
    async with client.upload("good") as good:
        await good.write(b"some of it")
    await eventually(lambda: "completed" in application.of(good.id))
    assert application.of(good.id)[0] == "created"
    assert application.of(good.id)[-2:] == ["growth", "completed"]
    assert application.told[-1] == ("completed", good.id, 10)
    bad = await opened(client, "bad")
    await bad.abort("enough")
    lost = await HandUpload.open(client.connection)
    await lost.close()
    for failed in (bad.id, lost.id):
        await eventually(lambda failed=failed: "failed" in application.of(failed))  # type: ignore[misc]  # no default
        assert application.of(failed) == ["created", "growth", "failed"]


@proves("HOO-1")
@pytest.mark.parametrize("visibility", list(Visibility))
async def test_a_veto_of_a_creation_leaves_nothing(
    new_server: NewServer, cell: Cell, application: Application, visibility: Visibility
) -> None:
    server = await new_server(hooks="an_application:make", max_uploads=1)
    client = server.connect(cell.transport)
    context = await client.create_context()
    application.vetoes["created"] = "not on a Friday"
    for _ in range(2):
        with pytest.raises(PermissionDenied, match="not on a Friday"):
            await client.upload("x", context=context.id, visibility=visibility, idempotency_key="key").open()
    assert (await client.list_page()).statuses == ()
    known = await client.get_context(context.id)
    assert (known.resources, known.bytes) == (0, 0)
    if server.data is not None:
        assert not any(path.name in ("data", "journal", "resource.json") for path in server.data.rglob("*"))
    del application.vetoes["created"]
    async with client.upload("x", context=context.id, visibility=visibility, idempotency_key="key") as upload:
        await upload.write(b"x")
    await client.close_context(context.id)
    async with aclosing(client.context_events(context.id)) as events:
        kinds = [event.kind async for event in events]
    assert kinds[:3] == [ContextEventKind.REFUSED, ContextEventKind.REFUSED, ContextEventKind.CREATED]


@proves("HOO-1", "UPL-16")
async def test_a_veto_of_growth_reaches_the_uploader_at_once_and_every_follower(
    new_server: NewServer, cell: Cell, application: Application
) -> None:
    server = await new_server(hooks="an_application:make")
    client, other = server.connect(cell.transport), server.connect(cell.transport)
    decided = asyncio.Event()

    async def on_growth(status: Status) -> None:
        await decided.wait()
        raise Veto("enough of it")

    application.on_growth = on_growth  # type: ignore[method-assign]  # for this test
    upload = await opened(client, "x")
    await upload.write(b"some")
    await upload.flush()
    async with other.open(upload.id) as resource, aclosing(resource.follow()) as pieces:
        assert await anext(pieces) == b"some"
        waiting = asyncio.ensure_future(anext(pieces))
        decided.set()
        with pytest.raises(ResourceFailed, match="enough of it"):
            await waiting
        status = await resource.status()
    assert (status.state, status.size, status.reason) == (ResourceState.FAILED, 4, "enough of it")
    with pytest.raises(PermissionDenied, match="enough of it"):
        await write_for_ever(upload, 4)
    await eventually(lambda: "failed" in application.of(upload.id))


@proves("HOO-1")
async def test_growth_is_told_at_most_once_in_a_second_and_at_the_end(
    new_server: NewServer, cell: Cell, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _hooks._GROWTH_INTERVAL == 1.0
    # As long as it takes: only the end may come earlier.
    monkeypatch.setattr(_hooks, "_GROWTH_INTERVAL", 3600.0)
    server = await new_server(hooks="an_application:make")
    client = server.connect(cell.transport)
    async with client.upload("x") as upload:
        for _ in range(10):
            await upload.write(b"more")
            await upload.flush()
        await eventually(lambda: "growth" in application.of(upload.id))
        assert application.of(upload.id) == ["created", "growth"]
    await eventually(lambda: "completed" in application.of(upload.id))
    assert application.of(upload.id) == ["created", "growth", "growth", "completed"]
    assert application.told[-2] == ("growth", upload.id, 40)


@proves("HOO-1")
async def test_what_hooks_raise_harms_nobody_and_is_logged(
    new_server: NewServer, cell: Cell, application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    server = await new_server(hooks="an_application:make", hook_timeout=0.05)
    client = server.connect(cell.transport)

    async def fail(status: Status) -> None:
        raise ValueError("a defect of the application")

    async def hang(status: Status) -> None:
        await asyncio.Event().wait()

    application.on_growth = fail  # type: ignore[method-assign]  # for this test
    application.on_completed = hang  # type: ignore[method-assign]  # for this test
    async with client.upload("x") as upload:
        await upload.write(b"data")
    assert (upload.status.state, upload.status.size) == (ResourceState.COMPLETED, 4)
    await eventually(lambda: "hang took longer than 0.05 s" in caplog.text)
    assert "fail failed" in caplog.text
    assert "a defect of the application" in caplog.text
    assert {record.name for record in caplog.records if record.levelname == "ERROR"} == {_hooks.__name__}
    # They were expected.
    caplog.clear()
