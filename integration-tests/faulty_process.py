"""Makes happen in this process what `fault_points` describes.

The real code is patched at run time, as a saboteur does it: the points are between its steps as it is, and a point
that the code does not have any more is an error.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

from fault_points import ACTIONS, Fault, Injection
from faulty_disk import make_disk_faulty
from sabotage import put


class _Points:
    """Counts how often each point is reached, and does what is due there."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self._due = {(fault.point, fault.number): fault.does for fault in faults}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def due(self, point: str) -> str | None:
        """Return what is to be done now that a point is reached."""
        with self._lock:
            number = self._counts[point] = self._counts.get(point, 0) + 1
        return self._due.get((point, number))

    def reach(self, point: str) -> None:
        """Do what is due at a point."""
        action = self.due(point)
        if action is not None:
            act(action)


def act(action: str) -> None:
    """Kill, stop or end this process; returns when it goes on after all."""
    os.kill(os.getpid(), ACTIONS[action])


def prepare(injection: Injection) -> None:
    """Do what has to be done before anything of the project is imported."""
    if injection.descriptors is not None:
        # Both: a server raises its own limit as far as it may.
        resource.setrlimit(resource.RLIMIT_NOFILE, (injection.descriptors, injection.descriptors))
    if injection.control is not None:
        _obey(Path(injection.control))


def break_server(injection: Injection) -> None:
    """Put the points of a server, and a disk that misbehaves, into the code."""
    points = _Points(injection.faults)
    _put_storage_points(points)
    _put_upload_points(points)
    _put_bulk_points(points)
    if injection.disk is not None:
        control = None if injection.control is None else Path(injection.control)
        make_disk_faulty(injection.disk, injection.disk_after, control)


def break_client(injection: Injection) -> None:
    """Put the points of a client that uploads into the code."""
    points = _Points(injection.faults)

    from tailrace_common_api import Checkpoint
    from tailrace_impl_common import ClientStream, _client_upload
    from tailrace_impl_common.messages import Chunk, Finish, Finished, Opened

    before = {Chunk: "before send", Finish: "before finish"}
    after = {Chunk: "after send", Finish: "after finish"}
    received = {Opened: "opened", Checkpoint: "acknowledged", Finished: "finished"}

    class WatchedStream(ClientStream):
        def __init__(self, inner: ClientStream) -> None:
            self._inner = inner

        async def send(self, message: Any) -> None:
            if type(message) in before:
                points.reach(before[type(message)])
            await self._inner.send(message)
            if type(message) in after:
                points.reach(after[type(message)])

        async def receive(self) -> Any:
            message = await self._inner.receive()
            if type(message) in received:
                points.reach(received[type(message)])
            return message

        async def close(self) -> None:
            await self._inner.close()

    begin = _client_upload.ConnectedUpload._begin

    async def watched_begin(self: Any, request: Any) -> Any:
        opened = await begin(self, request)
        points.reach("opened")
        self._stream = WatchedStream(self._stream)
        return opened

    put(_client_upload.ConnectedUpload, "_begin", watched_begin)


def _put_storage_points(points: _Points) -> None:
    from tailrace_impl_server import _filesystem_layout, _filesystem_writer
    from tailrace_impl_server._filesystem_files import DESCRIPTION
    from tailrace_impl_server._journal import RECORDS_OFFSET

    writer = _filesystem_writer.FilesystemWriter
    store, commit = writer._store, writer._commit
    # Each writer is worked by one thread at a time.
    here = threading.local()

    def watched_write(fd: int, buffers: Any, offset: int) -> None:
        if getattr(here, "storing", False):
            name = "write"
        elif offset >= RECORDS_OFFSET:
            name = "records"
        else:
            name = "the terminal slot" if getattr(here, "terminal", False) else "slot"
        points.reach(f"before {name}")
        action = points.due(f"in {name}")
        if action is not None:
            whole = b"".join(buffers)
            # Torn: half of it is there.
            write(fd, [whole[: len(whole) // 2]], offset)
            act(action)
        write(fd, buffers, offset)
        points.reach(f"after {name}")

    def watched_store(self: Any, batch: Any) -> None:
        here.storing = True
        try:
            store(self, batch)
        finally:
            here.storing = False

    def watched_commit(self: Any, slot: Any, *, cut: bool = False) -> Any:
        here.terminal = slot.snapshot.state.terminal
        points.reach("before the end" if here.terminal else "between data and journal")
        return commit(self, slot, cut=cut)

    write = put(_filesystem_writer, "write_all", watched_write)
    put(writer, "_store", watched_store)
    put(writer, "_commit", watched_commit)

    def watched_write_new(path: Path, data: bytes, *, sync: bool = True) -> None:
        if path.name == DESCRIPTION:
            points.reach("in creation")
        write_new(path, data, sync=sync)

    write_new = put(_filesystem_layout, "write_new_file", watched_write_new)


def _put_upload_points(points: _Points) -> None:
    from tailrace_impl_common import _serve_upload
    from tailrace_impl_server import _ingest

    session, conversation = _ingest.UploadSession, _serve_upload._UploadConversation
    publish_growth, publish_end = session._publish_growth, session._publish_end
    run, tell, complete = conversation.run, conversation._tell, conversation._complete
    completed: set[int] = set()

    def watched_publish_growth(self: Any, snapshot: Any) -> None:
        publish_growth(self, snapshot)
        points.reach("after announce")

    async def watched_publish_end(self: Any, snapshot: Any) -> None:
        points.reach("before the catalog")
        await publish_end(self, snapshot)

    async def watched_run(self: Any) -> None:
        points.reach("before opened")
        try:
            await run(self)
        finally:
            if id(self) in completed:
                completed.discard(id(self))
                points.reach("after the answer")

    async def watched_tell(self: Any, progress: Any) -> None:
        known = self._told.checkpoint
        await tell(self, progress)
        if progress.checkpoint != known:
            points.reach("after acknowledgement")

    async def watched_complete(self: Any, finish: Any) -> Any:
        status = await complete(self, finish)
        completed.add(id(self))
        points.reach("before the answer")
        return status

    put(session, "_publish_growth", watched_publish_growth)
    put(session, "_publish_end", watched_publish_end)
    put(conversation, "run", watched_run)
    put(conversation, "_tell", watched_tell)
    put(conversation, "_complete", watched_complete)


def _put_bulk_points(points: _Points) -> None:
    from tailrace_impl_common import MessageStream, _serve
    from tailrace_impl_common._serve_bulk import serve_bulk
    from tailrace_impl_common.record_messages import BulkCommitted, BulkOpened
    from tailrace_impl_server import _bulk_ingest
    from tailrace_impl_server._postgres_sink import PostgresSink
    from tailrace_impl_server._sqlite_sink import SqliteSink

    stage_group = _bulk_ingest.StagedBulk._stage_group

    async def watched_stage(self: Any) -> None:
        points.reach("before staging")
        await stage_group(self)
        points.reach("after staging")

    put(_bulk_ingest.StagedBulk, "_stage_group", watched_stage)

    for sink in (SqliteSink, PostgresSink):
        commit = sink.commit

        async def watched_commit(self: Any, *arguments: Any, _commit: Any = commit, **named: Any) -> Any:
            points.reach("before bulk commit")
            action = points.due("in bulk commit")
            if action is None:
                result = await _commit(self, *arguments, **named)
            else:
                # Somewhere in the transaction: it runs in a thread, or in another process.
                committing = asyncio.ensure_future(_commit(self, *arguments, **named))
                await asyncio.wait((committing,), timeout=0.01)
                act(action)
                result = await committing
            points.reach("after bulk commit")
            return result

        put(sink, "commit", watched_commit)

    class WatchedStream(MessageStream[Any, Any]):
        def __init__(self, inner: MessageStream[Any, Any]) -> None:
            self._inner = inner

        async def send(self, message: Any) -> None:
            if isinstance(message, BulkOpened):
                points.reach("before bulk opened")
            await self._inner.send(message)
            if isinstance(message, BulkCommitted):
                points.reach("after bulk answer")

        async def receive(self) -> Any:
            return await self._inner.receive()

    async def watched_serve(request: Any, stream: Any, **named: Any) -> None:
        await serve_bulk(request, WatchedStream(stream), **named)

    put(_serve, "serve_bulk", watched_serve)


def _obey(control: Path) -> None:
    """Report on SIGUSR1, and set the clock on SIGUSR2: both are files of ``control``."""
    real_time, real_time_ns = time.time, time.time_ns
    offset = 0

    def report(*_: object) -> None:
        # What only waits for the collector is not a leak.
        gc.collect()
        tasks = [task.get_name() for task in asyncio.all_tasks()]
        files = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                files[name] = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                # The descriptor of the listing itself.
                continue
        new = control / "report.new"
        new.write_text(json.dumps({"tasks": tasks, "files": files}))
        new.rename(control / "report")

    def set_clock(*_: object) -> None:
        nonlocal offset
        offset = int((control / "clock").read_text())
        (control / "clock").unlink()

    time.time = lambda: real_time() + offset
    time.time_ns = lambda: real_time_ns() + offset * 10**9
    signal.signal(signal.SIGUSR1, report)
    signal.signal(signal.SIGUSR2, set_clock)
