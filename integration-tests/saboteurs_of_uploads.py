"""Defects around uploads."""

from __future__ import annotations

import threading
from typing import Any

from sabotage import executed, put, saboteur


@saboteur("UPL-16", trap="late-failure")
def a_failure_waits_for_the_end_of_the_input() -> None:
    from tailrace_impl_common import _serve_upload
    from tailrace_impl_common.messages import Finish

    real = _serve_upload._UploadConversation._receive_data

    async def receive(self: Any) -> Any:
        submit = self._ingest.submit
        late: list[Exception] = []

        def hold(data: Any, *, hash: bytes) -> None:
            try:
                if not late:
                    submit(data, hash=hash)
            except Exception as error:  # noqa: BLE001 - the defect
                executed()
                late.append(error)

        self._ingest.submit = hold
        last = await real(self)
        if late and isinstance(last, Finish):
            raise late[0]
        return last

    put(_serve_upload._UploadConversation, "_receive_data", receive)


@saboteur("UPL-3", trap="late-cancel")
def cancelling_waits_for_the_end_of_the_source() -> None:
    import asyncio

    from tailrace_client_upload_api import _client

    real = _client.UploadSession.send_all

    async def send_all(self: Any, source: Any) -> int:
        sending = asyncio.ensure_future(real(self, source))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            executed()
            await asyncio.wait((sending,))
            raise

    put(_client.UploadSession, "send_all", send_all)


@saboteur("UPL-17", trap="threads-per-upload")
def every_upload_has_a_thread() -> None:
    from tailrace_impl_server import _ingest

    real = _ingest.UploadSession.__init__
    stop = threading.Event()

    def init(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        executed()
        threading.Thread(target=stop.wait, daemon=True).start()

    put(_ingest.UploadSession, "__init__", init)


@saboteur("UPL-17", "DWN-7", trap="blocked-worker")
def one_conversation_at_a_time() -> None:
    import asyncio

    from tailrace_impl_common import _inprocess, serve_conversation

    worker = asyncio.Lock()

    async def serve(*arguments: Any, **more: Any) -> None:
        if worker.locked():
            executed()
        async with worker:
            await serve_conversation(*arguments, **more)

    put(_inprocess, "serve_conversation", serve)


@saboteur("UPL-13", trap="purge-then-commit")
def an_aborted_atomic_upload_is_completed_after_all() -> None:
    from tailrace_impl_server import _ingest

    async def fail(self: Any, reason: str) -> None:
        executed()
        await self._publish_end(self._accept(await self._writer.complete()))

    put(_ingest.UploadSession, "_fail_resource", fail)


@saboteur("UPL-1")
def the_handshake_announces_no_window() -> None:
    from dataclasses import replace

    from tailrace_impl_common import _serve_upload
    from tailrace_impl_common.messages import Opened

    def opened(**fields: Any) -> Any:
        executed()
        return replace(Opened(**fields), until=0)

    put(_serve_upload, "Opened", opened)


@saboteur("UPL-7")
def the_client_ignores_its_window() -> None:
    from tailrace_impl_common import _window

    def available(self: Any, offset: int) -> int:
        executed()
        return 1 << 40

    put(_window.SendWindow, "available", available)


@saboteur("UPL-7", "CON-2")
def the_server_lets_clients_overdraw() -> None:
    from tailrace_impl_common import _upload_machine
    from tailrace_impl_server import _ingest

    real, submit = _upload_machine.UploadReceiver.receive, _ingest.UploadSession.submit

    def receive(self: Any, message: Any) -> None:
        self._until = 1 << 40
        executed()
        real(self, message)

    def take(self: Any, data: Any, *, hash: bytes) -> None:
        self._until = 1 << 40
        submit(self, data, hash=hash)

    put(_upload_machine.UploadReceiver, "receive", receive)
    put(_ingest.UploadSession, "submit", take)


@saboteur("UPL-4", "INT-2")
def completion_does_not_compare() -> None:
    from tailrace_impl_server import _ingest

    async def finish(self: Any, request: Any) -> None:
        executed()
        if self._progress.checkpoint.size < self._submitted:
            await self._announce()
        await self._publish_end(self._accept(await self._writer.complete()))
        self._result = self.live.status()

    put(_ingest.UploadSession, "_finish", finish)


@saboteur("UPL-4", cell="in-process-filesystem")
def completion_is_answered_before_it_is_synced() -> None:
    from tailrace_impl_server import _filesystem_writer

    def sync(descriptor: int) -> None:
        executed()

    put(_filesystem_writer, "sync_data", sync)


@saboteur("UPL-5")
def declarations_are_not_kept() -> None:
    from tailrace_impl_server import _ingest

    async def broken(self: Any, request: Any, end: Any) -> None:
        executed()

    put(_ingest.UploadSession, "_broken_promise", broken)


@saboteur("UPL-8", cell="websocket-memory")
def nobody_looks_whether_the_peer_lives() -> None:
    import websockets.asyncio.client as websockets

    from tailrace_impl_websocket import _client

    def connect(*arguments: Any, **options: Any) -> Any:
        executed()
        return websockets.connect(*arguments, **{**options, "ping_interval": None})

    put(_client, "connect_websocket", connect)


@saboteur("UPL-8", cell="grpc-memory")
def the_keep_alive_of_grpc_has_its_own_timeout() -> None:
    from tailrace_impl_grpc import _options

    real = _options._common_options

    def options(interval: float, timeout: float) -> Any:
        executed()
        return [option for option in real(interval, timeout) if option[0] != "grpc.http2.ping_timeout_ms"]

    put(_options, "_common_options", options)


@saboteur("UPL-10")
def an_older_session_goes_on() -> None:
    from tailrace_impl_server import _ingest, _memory_storage

    def fence(self: Any, *_: Any) -> None:
        executed()

    async def ended(self: Any) -> None:
        return

    put(_ingest.UploadSession, "fence", fence)
    put(_ingest.UploadSession, "ended", ended)
    put(_memory_storage.MemoryWriter, "fence", fence)


@saboteur("UPL-11")
def a_used_token_goes_on_working() -> None:
    from tailrace_impl_server import _uploads

    def matches(token: str | None, known: bytes) -> bool:
        executed()
        return bool(token)

    put(_uploads, "token_matches", matches)


@saboteur("UPL-12", "INT-2")
def an_append_anywhere_is_taken() -> None:
    from tailrace_impl_common import _upload_machine
    from tailrace_impl_common.messages import Chunk

    real = _upload_machine.UploadReceiver.receive

    def receive(self: Any, message: Any) -> None:
        if isinstance(message, Chunk) and message.offset != self.offset:
            executed()
            message = message._replace(offset=self.offset)
        real(self, message)

    put(_upload_machine.UploadReceiver, "receive", receive)


@saboteur("UPL-13")
def everyone_sees_what_is_not_complete() -> None:
    from tailrace_impl_server import _live_resource

    def hidden(self: Any) -> bool:
        executed()
        return False

    put(_live_resource.LiveResource, "hidden", property(hidden))


@saboteur("UPL-14")
def characters_are_cut() -> None:
    from tailrace_impl_common import _transcode

    def feed(self: Any, data: Any) -> bytes:
        executed()
        return bytes(data).decode(self.encoding, self._errors).encode()

    put(_transcode.Transcoder, "feed", feed)


@saboteur("UPL-9", "UPL-13")
def a_lost_uploader_is_waited_for_for_ever() -> None:
    from tailrace_impl_server import _retention

    def begin_grace(self: Any, *_: Any) -> None:
        executed()

    put(_retention.Sweeper, "begin_grace", begin_grace)


@saboteur("UPL-2")
def a_rotated_file_is_not_noticed() -> None:
    from tailrace_impl_common import _growing_file

    real = _growing_file._Reader._look

    def look(self: Any, ending: bool) -> Any:
        seen, data = real(self, ending)
        if seen in (_growing_file._Seen.TRUNCATED, _growing_file._Seen.REPLACED):
            executed()
            return _growing_file._Seen.NOTHING_NEW, b""
        return seen, data

    put(_growing_file._Reader, "_look", look)


@saboteur("UPL-15")
def the_local_directory_holds_nothing() -> None:
    from tailrace_impl_common import _local_uploads

    for name in dir(_local_uploads):
        kind = getattr(_local_uploads, name)
        if isinstance(kind, type) and "_store" in vars(kind) and name != "_LocalUpload":

            def store(self: Any, data: Any) -> None:
                executed()

            kind._store = store  # type: ignore[attr-defined]  # the defect
