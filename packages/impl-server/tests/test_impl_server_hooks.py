"""Hooks: when they are called, what they may refuse, and that they harm nobody."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
from impl_server_manager_bench import LINES, Bench, Uploader, last_status, refusal, turned, upload

from tailrace_common_api import (
    ContextEventKind,
    GoingAway,
    Metadata,
    NotFound,
    PermissionDenied,
    ResourceState,
    Status,
    TailraceError,
    Visibility,
)
from tailrace_impl_server import _hooks as hooks_module
from tailrace_server_api import ServerHooks, Veto


class Recorder(ServerHooks):
    """Remembers its calls, and does what a test has put in."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, ResourceState, int]] = []
        self.principals: list[str] = []
        self.act: dict[str, Callable[[Status], Awaitable[None]]] = {}

    async def _called(self, name: str, status: Status) -> None:
        self.calls.append((name, status.id, status.state, status.size))
        if name in self.act:
            await self.act[name](status)

    async def on_created(self, status: Status, principal: str) -> None:
        self.principals.append(principal)
        await self._called("created", status)

    async def on_growth(self, status: Status) -> None:
        await self._called("growth", status)

    async def on_completed(self, status: Status) -> None:
        await self._called("completed", status)

    async def on_failed(self, status: Status) -> None:
        await self._called("failed", status)

    def names(self) -> list[str]:
        return [name for name, _, _, _ in self.calls]


class Raising:
    """An act that raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def __call__(self, status: Status) -> None:
        # Each time a new one: an error that is raised again keeps the traceback of before.
        raise type(self.error)(*self.error.args)


@pytest.fixture
def hooks(bench: Bench) -> Recorder:
    recorder = Recorder()
    bench.hooks = recorder
    return recorder


async def test_hooks_follow_a_resource_in_order(bench: Bench, hooks: Recorder) -> None:
    manager = await bench.start()
    status = await upload(manager, b"abc")
    await turned(lambda: "completed" in hooks.names())
    initiated, completed = ResourceState.INITIATED, ResourceState.COMPLETED
    assert hooks.calls[0] == ("created", status.id, initiated, 0)
    assert hooks.calls[-2:] == [("growth", status.id, completed, 3), ("completed", status.id, completed, 3)]
    assert hooks.principals == [""]
    failed = Uploader(await manager.create(LINES, principal="somebody"))
    await failed.ingest.abort("enough")
    await turned(lambda: "failed" in hooks.names())
    assert hooks.calls[-1] == ("failed", failed.id, ResourceState.FAILED, 0)
    assert hooks.principals[-1] == "somebody"


async def test_a_lost_uploader_fails_its_resource_for_the_hooks_too(bench: Bench, hooks: Recorder) -> None:
    manager = await bench.start(upload_grace=0.01)
    ingest = await manager.create(LINES)
    await ingest.release()
    await turned(lambda: "failed" in hooks.names())
    assert hooks.calls[-1][1] == ingest.id


async def test_growth_is_told_at_most_once_in_its_interval(
    bench: Bench, hooks: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks_module, "_GROWTH_INTERVAL", 3600.0)
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    for _ in range(20):
        await uploader.send(b"abc")
        await uploader.announced()
    await turned(lambda: "growth" in hooks.names())
    await uploader.send(b"the end")
    await uploader.announced()
    assert hooks.names() == ["created", "growth"]
    # The end does not wait for the interval.
    await uploader.finish()
    await turned(lambda: "completed" in hooks.names())
    assert hooks.names() == ["created", "growth", "growth", "completed"]


async def test_growth_within_the_interval_is_told_when_it_is_over(
    bench: Bench, hooks: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks_module, "_GROWTH_INTERVAL", 0.05)
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    for size in (3, 6):
        await uploader.send(b"abc")
        await uploader.announced()
        await turned(lambda size=size: ("growth", uploader.id, ResourceState.IN_PROGRESS, size) in hooks.calls)  # type: ignore[misc]  # a default is not inferred
    # Nothing is kept of a resource that has not grown for a while.
    await turned(lambda: not manager._uploads._hooks._feeds)
    await turned(lambda: not manager._uploads._hooks._tasks)


@pytest.mark.parametrize("visibility", list(Visibility))
async def test_a_veto_of_the_creation_leaves_nothing(bench: Bench, hooks: Recorder, visibility: Visibility) -> None:
    manager = await bench.start(max_uploads=1)
    context = (await manager.create_context({})).id
    metadata = Metadata(name="x", context=context)
    hooks.act["created"] = Raising(Veto("not on a Friday"))
    for _ in range(2):
        with pytest.raises(PermissionDenied, match="not on a Friday"):
            await manager.create(metadata, visibility=visibility, idempotency_key="key")
    assert await bench.catalog.known() == frozenset()
    assert [found async for found in bench.storage.ids()] == []
    assert hooks.names() == ["created", "created"]
    with pytest.raises(NotFound):
        await manager.open_reader(hooks.calls[0][1])
    del hooks.act["created"]
    # Neither the quota nor the key is taken.
    assert (await manager.create(metadata, idempotency_key="key")).snapshot.state is ResourceState.INITIATED
    await manager.close_context(context)
    kinds = [event.kind async for event in manager.context_events(context)]
    refused = ContextEventKind.REFUSED
    assert kinds[:3] == [refused, refused, ContextEventKind.CREATED]


async def test_a_veto_of_growth_fails_the_resource_and_tells_its_uploader(bench: Bench, hooks: Recorder) -> None:
    manager = await bench.start()
    hooks.act["growth"] = Raising(Veto("too much of it"))
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"abc")
    error = await refusal(uploader.ingest)
    assert isinstance(error, PermissionDenied)
    assert error.message == "too much of it"
    with pytest.raises(TailraceError):
        await uploader.send(b"more")
    status = await last_status(manager, uploader.id)
    assert (status.state, status.reason, status.size) == (ResourceState.FAILED, "too much of it", 3)
    await turned(lambda: "failed" in hooks.names())
    # The veto at the end comes too late, and is only logged.
    assert hooks.names() == ["created", "growth", "growth", "failed"]


async def test_a_veto_ends_an_upload_whose_uploader_is_away(bench: Bench, hooks: Recorder) -> None:
    manager = await bench.start(upload_grace=3600)
    decided = asyncio.Event()

    async def veto(status: Status) -> None:
        await decided.wait()
        raise Veto("no")

    hooks.act["growth"] = veto
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"abc")
    await uploader.announced()
    await uploader.ingest.release()
    decided.set()
    assert (await last_status(manager, uploader.id)).reason == "no"


async def test_a_veto_at_the_end_comes_too_late(
    bench: Bench, hooks: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await bench.start()
    for name in ("growth", "completed"):
        hooks.act[name] = Raising(Veto("no"))
    uploader = Uploader(await manager.create(LINES))
    assert (await uploader.finish()).state is ResourceState.COMPLETED
    await turned(lambda: caplog.text.count("a veto came too late") == 2)
    assert (await last_status(manager, uploader.id)).state is ResourceState.COMPLETED


@pytest.mark.parametrize("error", [ValueError("a defect"), asyncio.CancelledError()])
async def test_what_hooks_raise_is_logged_and_changes_nothing(
    bench: Bench, hooks: Recorder, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    manager = await bench.start()
    for name in ("created", "growth", "completed"):
        hooks.act[name] = Raising(error)
    status = await upload(manager, b"abc")
    assert status.state is ResourceState.COMPLETED
    await turned(lambda: "on_completed" in caplog.text)
    assert {"on_created", "on_growth", "on_completed"} <= {
        record.getMessage().split()[0] for record in caplog.records if record.levelno == logging.ERROR
    }


async def test_a_hook_that_takes_too_long_is_cancelled(
    bench: Bench, hooks: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await bench.start(hook_timeout=0.01)
    cancelled: list[str] = []

    async def hang(status: Status) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(status.id)

    hooks.act["created"] = hooks.act["completed"] = hang
    status = await upload(manager, b"abc")
    await turned(lambda: cancelled == [status.id, status.id])
    assert "on_created took longer than 0.01 s" in caplog.text


async def test_a_hook_that_hangs_holds_up_only_its_own_resource(bench: Bench, hooks: Recorder) -> None:
    manager = await bench.start()
    slow = Uploader(await manager.create(LINES))
    let_go = asyncio.Event()

    async def hang(status: Status) -> None:
        if status.id == slow.id:
            await let_go.wait()

    hooks.act["growth"] = hang
    await slow.send(b"abc")
    await slow.announced()
    await turned(lambda: ("growth", slow.id, ResourceState.IN_PROGRESS, 3) in hooks.calls)
    other = await upload(manager, b"abc")
    await turned(lambda: ("completed", other.id, ResourceState.COMPLETED, 3) in hooks.calls)
    # The upload itself does not wait either; what is to be told of it does.
    assert (await slow.finish()).state is ResourceState.COMPLETED
    assert ("completed", slow.id, ResourceState.COMPLETED, 3) not in hooks.calls
    let_go.set()
    await turned(lambda: ("completed", slow.id, ResourceState.COMPLETED, 3) in hooks.calls)


async def test_closing_waits_for_hooks_and_not_for_ever(
    bench: Bench, hooks: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await bench.start()
    ended: list[str] = []
    stubborn = asyncio.Event()

    async def work(status: Status) -> None:
        await asyncio.sleep(0)
        ended.append(status.id)

    hooks.act["completed"] = work
    status = await upload(manager, b"abc")
    await bench.close()
    assert ended == [status.id]

    async def refuse_to_end(status: Status) -> None:
        while not stubborn.is_set():
            try:
                await stubborn.wait()
            except asyncio.CancelledError:
                continue

    monkeypatch.setattr(hooks_module, "_LAST_WORDS", 0.01)
    manager = await bench.start(hook_timeout=0.05)
    hooks.act["completed"] = refuse_to_end
    await upload(manager, b"abc")
    await bench.close()
    assert "hooks were cancelled" in caplog.text
    stubborn.set()
    await turned(lambda: not manager._uploads._hooks._tasks)


async def test_a_shutdown_does_not_wait_for_the_answer_about_a_creation(
    disk_bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = disk_bench.hooks = Recorder()
    manager = await disk_bench.start(hook_timeout=3600)
    asked = asyncio.Event()

    async def hang(status: Status) -> None:
        asked.set()
        await asyncio.Event().wait()

    hooks.act["created"] = hang
    creating = asyncio.ensure_future(manager.create(LINES, idempotency_key="key"))
    await asked.wait()
    await disk_bench.close()
    with pytest.raises(GoingAway):
        await creating
    # Without the answer nobody continues it: the next attempt asks again.
    manager = await disk_bench.start()
    del hooks.act["created"]
    await manager.create(LINES, idempotency_key="key")
    assert hooks.names() == ["created", "created"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_hooks_are_asked_again_for_what_nobody_was_answered(disk_bench: Bench) -> None:
    hooks = disk_bench.hooks = Recorder()
    manager = await disk_bench.start()
    disk_bench.gates.shut("open")
    creating = asyncio.ensure_future(manager.create(LINES, idempotency_key="key"))
    await disk_bench.gates.arrival("open")
    # The server dies before it answers: nothing of the first attempt but the resource is left.
    disk_bench.gates.failures["open"] = TailraceError("the process dies")
    disk_bench.gates.open("open")
    with pytest.raises(TailraceError, match="dies"):
        await creating
    manager = await disk_bench.restart()
    hooks.act["created"] = Raising(Veto("no"))
    with pytest.raises(PermissionDenied):
        await manager.create(LINES, idempotency_key="key")
    assert await disk_bench.catalog.known() == frozenset()


async def test_who_does_not_care_for_growth_costs_nothing_while_resources_grow(bench: Bench) -> None:
    bench.hooks = ServerHooks()
    manager = await bench.start()
    uploader = Uploader(await manager.create(LINES))
    await uploader.send(b"abc")
    await uploader.announced()
    assert not manager._uploads._hooks._feeds
    await uploader.finish()


async def test_a_defect_behind_a_veto_is_logged(
    bench: Bench, hooks: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks.act["growth"] = Raising(Veto("no more"))
    manager = await bench.start()

    async def fail(id: str, error: PermissionDenied) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(manager._uploads._hooks, "_veto", fail)
    with caplog.at_level(logging.ERROR):
        uploader = Uploader(await manager.create(LINES))
        await uploader.send(b"abc")
        await turned(lambda: bool(caplog.records))
    (record,) = caplog.records
    assert record.resource == uploader.id  # type: ignore[attr-defined]  # Every record bears it.
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)
