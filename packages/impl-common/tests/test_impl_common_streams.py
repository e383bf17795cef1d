"""What a transport has that implements no more of a conversation than it must."""

from __future__ import annotations

import pytest

from tailrace_common_api import ConnectionLost
from tailrace_impl_common import MessageStream
from tailrace_impl_common.messages import ClientMessage, ServerMessage, Watched, Window


class Plain(MessageStream[ServerMessage, ClientMessage]):
    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: list[ServerMessage] = []

    async def send(self, message: ServerMessage) -> None:
        if len(self.sent) == self.room:
            raise ConnectionLost("the client is gone")
        self.sent.append(message)

    async def receive(self) -> ClientMessage | None:
        return None


async def test_the_last_messages_are_sent_one_by_one_in_order() -> None:
    stream = Plain(room=3)
    await stream.send_last(Window(1), Window(2), Watched())
    assert stream.sent == [Window(1), Window(2), Watched()]


async def test_the_last_messages_end_where_the_conversation_does() -> None:
    stream = Plain(room=1)
    with pytest.raises(ConnectionLost, match="the client is gone"):
        await stream.send_last(Window(1), Window(2), Watched())
    assert stream.sent == [Window(1)]


async def test_messages_that_may_go_together_are_sent_one_by_one_in_order() -> None:
    stream = Plain(room=2)
    await stream.send_together(Window(1), Watched())
    assert stream.sent == [Window(1), Watched()]
