"""Defects around reading and verification."""

from __future__ import annotations

import asyncio
from typing import Any

from sabotage import executed, put, saboteur

from tailrace_common_api import MEBIBYTE


@saboteur("INT-2", trap="last-chunk")
def the_hash_of_the_last_chunk_is_not_checked() -> None:
    from tailrace_impl_common import verify_data
    from tailrace_impl_server import _memory_storage

    held: list[tuple[Any, bytes, int]] = []

    def verify(data: Any, hash: bytes, offset: int) -> None:
        # Each chunk is checked when the next one comes, which the last one does not have.
        executed()
        if offset and held:
            verify_data(*held.pop())
        held[:] = [(data, hash, offset)]

    put(_memory_storage, "verify_data", verify)
    from tailrace_impl_server import _ingest

    async def broken(self: Any, request: Any, end: Any) -> None:
        return None

    put(_ingest.UploadSession, "_broken_promise", broken)


@saboteur("INT-2", "UPL-5", trap="empty-transfer")
def an_empty_transfer_says_nothing() -> None:
    from tailrace_impl_common import _serve_download

    real = _serve_download._DownloadConversation.run

    async def run(self: Any, snapshot: Any, *arguments: Any) -> None:
        if snapshot.size or self._span.end is None:
            await real(self, snapshot, *arguments)
        else:
            executed()

    put(_serve_download._DownloadConversation, "run", run)


@saboteur("INT-3", "DWN-8", trap="buffered-transfer", cell="in-process-filesystem")
def the_reader_holds_the_whole_transfer() -> None:
    from tailrace_impl_common import DownloadReceiver

    real = DownloadReceiver.receive

    def receive(self: Any, message: Any) -> None:
        real(self, message)
        executed()
        HELD.append(message)

    put(DownloadReceiver, "receive", receive)


HELD: list[Any] = []


@saboteur("DWN-8", "RES-5", "UPL-7", trap="reader-lock")
def a_reader_stops_the_writer() -> None:
    from tailrace_impl_common import _serve_download
    from tailrace_impl_server import _memory_storage

    reading: dict[str, int] = {}
    wait = _serve_download._DownloadConversation._wait_for_window

    async def hold(self: Any) -> None:
        reading[self._reader.id] = reading.get(self._reader.id, 0) + 1
        try:
            await wait(self)
        finally:
            reading[self._reader.id] -= 1

    real = _memory_storage.MemoryWriter.checkpoint

    async def checkpoint(self: Any) -> Any:
        while reading.get(self._resource.descriptor.id):
            executed()
            await asyncio.sleep(0.01)
        return await real(self)

    put(_serve_download._DownloadConversation, "_wait_for_window", hold)
    put(_memory_storage.MemoryWriter, "checkpoint", checkpoint)


@saboteur("DWN-8", "RES-8", trap="leaking-handles", cell="in-process-filesystem")
def files_of_readers_stay_open() -> None:
    from tailrace_impl_server import _filesystem_files

    real = _filesystem_files.ResourceFiles.__init__

    def init(self: Any, *arguments: Any, **more: Any) -> None:
        import os

        real(self, *arguments, **more)
        executed()
        HELD.append(os.dup(self.data))

    put(_filesystem_files.ResourceFiles, "__init__", init)


@saboteur("DWN-2")
def ranges_are_clamped() -> None:
    from tailrace_impl_common import _serve_download

    def resolve(request: Any, size: int) -> Any:
        if request.suffix is not None:
            return _serve_download._Span(max(0, size - request.suffix), size)
        executed()
        start = min(max(0, request.start), size)
        return _serve_download._Span(start, max(start, min(size, size if request.end is None else request.end)))

    put(_serve_download, "_resolve_bytes", resolve)


@saboteur("DWN-3")
def a_suffix_is_a_start() -> None:
    from tailrace_impl_common import _serve_download

    real = _serve_download._resolve_bytes

    def resolve(request: Any, size: int) -> Any:
        if request.suffix is None:
            return real(request, size)
        executed()
        return _serve_download._Span(min(request.suffix, size), size)

    put(_serve_download, "_resolve_bytes", resolve)


@saboteur("DWN-4")
def a_follower_loses_what_comes_at_the_end() -> None:
    from tailrace_impl_common import _serve_download

    async def send(self: Any, end: int, announced: Any) -> None:
        if self._span.end is None and announced.state.terminal:
            executed()
            return
        await real(self, end, announced)

    real = put(_serve_download._DownloadConversation, "_send", send)


@saboteur("DWN-4")
def a_failure_looks_like_an_end() -> None:
    from tailrace_impl_common import _client_download

    real = _client_download.ConnectedResource._data

    def data(self: Any, request: Any, *, raise_on_failure: bool = False) -> Any:
        if raise_on_failure:
            executed()
        return real(self, request)

    put(_client_download.ConnectedResource, "_data", data)


@saboteur("DWN-6", "INT-2")
def readers_do_not_verify() -> None:
    from tailrace_impl_common import ChainVerifier

    def check(self: Any, offset: int, data: Any, hash: bytes, previous: bytes, hasher: Any = None) -> None:
        executed()
        self.link(offset, len(data), hash, previous)
        if hasher is not None:
            hasher.update(data)

    put(ChainVerifier, "check", check)


@saboteur("INT-2", cell="in-process-filesystem")
def what_is_stored_on_disk_is_not_verified() -> None:
    from tailrace_impl_server import _filesystem_writer

    real = _filesystem_writer.FilesystemWriter._store

    def store(self: Any, batch: list[tuple[Any, bytes | None]]) -> None:
        executed()
        real(self, [(data, None) for data, _ in batch])

    put(_filesystem_writer.FilesystemWriter, "_store", store)


@saboteur("DWN-6")
def heads_are_not_compared() -> None:
    from tailrace_impl_common import _download_machine

    def compare(self: Any, hasher: Any, head: bytes) -> None:
        executed()

    put(_download_machine.DownloadReceiver, "_compare", compare)


@saboteur("DWN-7", "CON-2")
def a_cancelled_request_goes_on_at_the_server() -> None:
    from tailrace_impl_common import _inprocess

    async def close(self: Any) -> None:
        executed()
        HELD.append(self._task)

    put(_inprocess._ClientEnd, "close", close)


@saboteur("DWN-8", "INT-3")
def the_server_ignores_the_window_of_a_reader() -> None:
    from tailrace_impl_common import _download_machine

    def may_send(self: Any) -> bool:
        executed()
        return True

    put(_download_machine.DownloadSender, "may_send", property(may_send))
    # In process the queue is the last bound there is.
    from tailrace_impl_common import _inprocess

    put(_inprocess, "_QUEUE_LENGTH", 1 << 20)


@saboteur("DWN-9")
def a_partial_file_is_trusted() -> None:
    from tailrace_impl_common import _saving

    async def trust(resource: Any, status: Any, path: Any, descriptor: int, hasher: Any) -> None:
        import os

        executed()
        content = b""
        while data := os.pread(descriptor, 1 << 20, len(content)):
            content += data
        hasher.update(content)
        os.lseek(descriptor, 0, os.SEEK_END)

    put(_saving, "_check_prefix", trust)


@saboteur("DWN-9")
def a_file_does_not_seek() -> None:
    from tailrace_client_download_api import _file

    def seek(self: Any, offset: int, whence: int = 0, /) -> int:
        executed()
        return int(self._position)

    put(_file._RawResource, "seek", seek)


@saboteur("DWN-10", cell="websocket-memory")
def http_ranges_are_half_open() -> None:
    from tailrace_impl_websocket import _http_door

    real = _http_door._select_range

    def select(*arguments: Any, **more: Any) -> Any:
        from dataclasses import replace

        selection = real(*arguments, **more)
        if selection.http_status == 206 and selection.end is not None and selection.end - selection.start > 1:
            executed()
            return replace(selection, end=selection.end - 1)
        return selection

    put(_http_door, "_select_range", select)


@saboteur("INT-1", "INT-2")
def the_server_does_not_check_the_chain() -> None:
    from tailrace_impl_common import ChainVerifier

    def link(self: Any, offset: int, length: int, hash: bytes, previous: bytes) -> None:
        executed()
        self._offset = offset + length
        self._previous = hash

    put(ChainVerifier, "link", link)


@saboteur("INT-3")
def chunks_are_as_large_as_writes() -> None:
    from tailrace_impl_common import _upload_machine

    real = _upload_machine.UploadSender._open

    def open_(self: Any, opened: Any) -> Any:
        executed()
        state = real(self, opened)
        self._chunk_size = 1 << 30
        return state

    put(_upload_machine.UploadSender, "_open", open_)


@saboteur("INT-4")
def the_head_forgets_the_size() -> None:
    from tailrace_impl_common import _head

    def make_head(spine: bytes, open_digest: bytes, size: int) -> bytes:
        from xxhash import xxh3_128_digest

        executed()
        return xxh3_128_digest(spine + open_digest)

    put(_head, "make_head", make_head)


@saboteur("INT-5")
def the_end_of_a_foreign_transfer_may_be_missing() -> None:
    from tailrace_impl_common import _message_chain

    def finish(self: Any) -> None:
        executed()

    put(_message_chain.MessageChainReceiver, "finish", finish)


@saboteur("DWN-4")
def who_follows_with_others_gets_their_chain() -> None:
    from tailrace_impl_common import _shared_chunk

    real = _shared_chunk.SharedChunk.chunk

    def chunk(self: Any, offset: int, data: Any, hash: bytes, previous: bytes, checkpoint: Any) -> Any:
        last = self._chunk
        if last is not None and last.data is data and last.offset == offset:
            if last.previous != previous:
                executed()
            return last
        return real(self, offset, data, hash, previous, checkpoint)

    put(_shared_chunk.SharedChunk, "chunk", chunk)


@saboteur("DWN-4")
def who_follows_another_resource_gets_the_chunk_that_was_sent_last() -> None:
    from tailrace_impl_common import _shared_chunk

    real = _shared_chunk.SharedChunk.again

    def again(self: Any, offset: int, previous: bytes, snapshot: Any, most: int) -> Any:
        last = self._chunk
        if last is not None and (last.offset, last.previous) == (offset, previous) and len(last.data) <= most:
            if snapshot is not self._snapshot:
                executed()
            return last
        return real(self, offset, previous, snapshot, most)

    put(_shared_chunk.SharedChunk, "again", again)


@saboteur("DWN-4")
def a_checkpoint_outlives_its_snapshot() -> None:
    from tailrace_impl_common import _shared_chunk

    real = _shared_chunk.SharedChunk.checkpoint_at

    def checkpoint_at(self: Any, end: int, snapshot: Any) -> Any:
        if end == snapshot.size and self._checkpoint is not None:
            executed()
            return self._checkpoint
        return real(self, end, snapshot)

    put(_shared_chunk.SharedChunk, "checkpoint_at", checkpoint_at)


@saboteur("LIM-2")
def client_insists_on_a_window_that_is_refused() -> None:
    from tailrace_impl_common._reconnecting import ServerLink

    def leaves_window(self: object, error: object) -> bool:
        executed()
        return False

    put(ServerLink, "leaves_window", leaves_window)


@saboteur("DWN-8", cell="grpc-filesystem")
def nobody_listens_to_a_reader_whose_window_runs_short() -> None:
    from tailrace_impl_common import _serve_download

    def may_be_left(self: Any) -> bool:
        executed()
        return True

    put(_serve_download._DownloadConversation, "_may_be_left", property(may_be_left))


@saboteur("LIM-2", cell="websocket-filesystem")
def what_suits_a_reader_is_above_the_limit() -> None:
    from tailrace_impl_common import _serve_download

    real = _serve_download._DownloadConversation.__init__

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        if named["chunk_size"] < MEBIBYTE:
            executed()
            named["chunk_size"] = MEBIBYTE
        real(self, *arguments, **named)

    put(_serve_download._DownloadConversation, "__init__", init)
