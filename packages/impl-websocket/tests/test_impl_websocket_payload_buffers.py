"""What the messages of a server are received into."""

from __future__ import annotations

import asyncio
import threading

from impl_websocket_frames import unmasked

from tailrace_impl_websocket._frame_layout import BINARY
from tailrace_impl_websocket._frame_reader import FrameReader
from tailrace_impl_websocket._payload_buffers import PayloadBuffers


async def test_connections_of_a_thread_share_the_area_and_no_more() -> None:
    loop = asyncio.get_running_loop()
    first, second = PayloadBuffers(loop), PayloadBuffers(loop)
    assert first.area is second.area
    elsewhere: list[PayloadBuffers] = []
    thread = threading.Thread(target=lambda: elsewhere.append(PayloadBuffers(loop)))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert elsewhere[0].area is not first.area


async def test_messages_keep_what_they_are_while_others_arrive() -> None:
    """Whatever is kept, and however long."""
    buffers = PayloadBuffers(asyncio.get_running_loop())
    kept: list[memoryview] = []

    class Sink:
        def binary_received(self, data: memoryview) -> None:
            kept.append(data)

    reader = FrameReader(Sink(), buffers, max_size=None, masked=False)  # type: ignore[arg-type]  # nothing else arrives
    for number in range(40):
        size = 200_000 + 50_000 * (number % 7)
        reader.feed(unmasked(BINARY, bytes([number]) * size))
        assert kept[-1].readonly
        if number % 3:
            kept.pop()
        for view in kept:
            assert view == bytes(view[:1]) * len(view)
    assert [view[0] for view in kept] == list(range(0, 40, 3))
    assert buffers._reusable.kept <= 8
    assert reader._target is None
    assert reader._buffer is None
    buffers.release()
    assert buffers._reusable.kept == 0
