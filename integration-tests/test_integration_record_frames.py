"""Records in frames that break the protocol: the bulk ends with a typed error, nothing of it is there, others go on."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cells import WEBSOCKET_RECORD_CELLS
from manifest import proves
from record_databases import RecordDatabase, contact, eventually
from servers import LocalServer
from test_integration_connections import error_in, next_message, raw_websocket

from tailrace_common_api import MessageTooLarge, ProtocolError, RecordBatch
from tailrace_impl_common import ConnectedClient, RecordDigest, chunk_hash
from tailrace_impl_common.messages import Chunk
from tailrace_impl_websocket._binary_frame import frame_of

pytestmark = pytest.mark.record_cells(WEBSOCKET_RECORD_CELLS)

SOUND = RecordBatch([json.dumps(contact(number)).encode() for number in range(3)])


def sound(request: int) -> bytes:
    return frame_of(request, SOUND)


def beyond_the_window(request: int, window: int) -> bytes:
    return frame_of(request, RecordBatch([b"x" * 1000] * (window // 1000)))


def cut(request: int, window: int) -> bytes:
    return sound(request)[:-1]


def of_none(request: int, window: int) -> bytes:
    return sound(request)[:8] + bytes(8)


def of_another_layout(request: int, window: int) -> bytes:
    return frame_of(request, Chunk(0, b"data", chunk_hash(b"data"), b""))


def too_large(request: int, window: int) -> bytes:
    return sound(request) + bytes(5 * 1024 * 1024)


@proves("REC-2", "CON-2")
@pytest.mark.parametrize("break_it", [beyond_the_window, cut, of_none, of_another_layout, too_large])
async def test_frames_that_break_the_protocol_leave_nothing_of_their_bulk(
    record_server: LocalServer,
    record_client: ConnectedClient,
    record_database: RecordDatabase,
    break_it: Callable[[int, int], bytes],
) -> None:
    digest = RecordDigest()
    digest.update(SOUND)
    end = {"type": "commit_bulk", "records": len(SOUND.data), "digest": digest.digest().hex()}
    async with raw_websocket(record_server) as websocket:
        windows = []
        for request in (1, 2):
            await websocket.send(json.dumps({"type": "open_bulk", "request": request, "collection": "contacts"}))
            opened = await next_message(websocket, request, "bulk_opened")
            windows.append(opened["until"])
            await websocket.send(sound(request))
        await websocket.send(break_it(1, windows[0]))
        # An error is no success, whatever is said behind it.
        await websocket.send(json.dumps({**end, "request": 1}))
        error = error_in(await next_message(websocket, 1, "error", "bulk_committed"))
        assert isinstance(error, MessageTooLarge if break_it is too_large else ProtocolError)
        assert await record_database.contacts() == 0
        # The other bulk of the connection has the same records, and is not concerned.
        await websocket.send(json.dumps({**end, "request": 2}))
        committed = await next_message(websocket, 2, "bulk_committed")
        assert committed["result"]["records"] == len(SOUND.data)
    assert await record_database.contacts() == len(SOUND.data)
    await eventually(record_database.staged, 0)
