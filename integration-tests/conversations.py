"""Conversations spoken message by message, over whatever transport a client has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

from tailrace_common_api import Checkpoint, Metadata, NotFound, TailraceError
from tailrace_impl_common import ClientStream, ConnectedClient, Connection, HeadHasher, chunk_hash
from tailrace_impl_common.messages import (
    Abort,
    Chunk,
    ClientMessage,
    Finish,
    Finished,
    Opened,
    OpenUpload,
    ReopenUpload,
    Request,
    ServerMessage,
    Window,
)

MessageT = TypeVar("MessageT")


class Conversation:
    """One conversation on the client's side."""

    def __init__(self, stream: ClientStream) -> None:
        self.stream = stream

    @classmethod
    async def begin(cls, connection: Connection, request: Request) -> Self:
        """Send the first message."""
        return cls(await connection.open(request))

    @classmethod
    async def refused(cls, connection: Connection, request: Request) -> TailraceError:
        """Return the error with which a request is refused, which may be quicker than the request is sent."""
        try:
            conversation = await cls.begin(connection, request)
        except TailraceError as error:
            return error
        try:
            return await conversation.error()
        finally:
            await conversation.close()

    async def receive(self, kind: type[MessageT]) -> MessageT:
        """Return the next message of a kind; others before it are taken and dropped."""
        while True:
            message = await self.stream.receive()
            assert message is not None, f"the conversation ended before {kind.__name__}"
            self._note(message)
            if isinstance(message, kind):
                return message

    def _note(self, message: ServerMessage) -> None:
        """Keep what a later question may be about."""

    async def rest(self) -> list[ServerMessage]:
        """Return all messages up to the end, which must be in order."""
        messages = []
        while (message := await self.stream.receive()) is not None:
            messages.append(message)
        return messages

    async def error(self) -> TailraceError:
        """Return the error that ends the conversation."""
        try:
            await self.rest()
        except TailraceError as error:
            return error
        raise AssertionError("the conversation ended in order")

    async def send(self, message: ClientMessage) -> None:
        """Send a message."""
        await self.stream.send(message)

    async def close(self) -> None:
        """Leave the conversation, as a client does that is gone."""
        await self.stream.close()


class HandUpload(Conversation):
    """An upload whose every message the test decides about. Its own state follows what a good client sends."""

    opened: Opened

    @classmethod
    async def open(cls, connection: Connection, name: str = "by hand", **fields: Any) -> Self:
        """Open a new upload; ``fields`` are those of the metadata and of ``OpenUpload``."""
        opening = {
            key: fields.pop(key) for key in ("visibility", "length", "sha256", "idempotency_key") if key in fields
        }
        return await cls._opened(connection, OpenUpload(metadata=Metadata(name=name, **fields), **opening))

    @classmethod
    async def reopen(cls, connection: Connection, id: str, token: str, prefix: bytes = b"") -> Self:
        """Open the next session of an upload; ``prefix`` is what the server is known to have."""
        upload = await cls._opened(connection, ReopenUpload(id=id, token=token))
        upload._hasher.update(prefix)
        return upload

    @classmethod
    async def _opened(cls, connection: Connection, request: OpenUpload | ReopenUpload) -> Self:
        upload = await cls.begin(connection, request)
        upload.opened = await upload.receive(Opened)
        upload.offset = upload.opened.offset
        upload.until = upload.opened.until
        upload.checkpoint = Checkpoint(upload.opened.offset, upload.opened.newlines, upload.opened.head)
        upload.previous = b""
        upload._hasher = HeadHasher()
        return upload

    offset: int
    until: int
    checkpoint: Checkpoint
    """The last announced one that was received."""
    previous: bytes
    _hasher: HeadHasher

    def _note(self, message: ServerMessage) -> None:
        if isinstance(message, Window):
            self.until = message.until
        elif isinstance(message, Checkpoint):
            self.checkpoint = message

    @property
    def id(self) -> str:
        """Resource id."""
        return self.opened.status.id

    @property
    def token(self) -> str:
        """Upload token."""
        return self.opened.token

    @property
    def head(self) -> bytes:
        """Head of all bytes that were sent."""
        return self._hasher.head()

    def make(
        self, data: bytes, *, offset: int | None = None, hash: bytes | None = None, previous: bytes | None = None
    ) -> Chunk:
        """Return the chunk that comes next, or one that differs from it."""
        return Chunk(
            self.offset if offset is None else offset,
            data,
            chunk_hash(data) if hash is None else hash,
            self.previous if previous is None else previous,
        )

    async def chunk(self, data: bytes) -> None:
        """Send the next chunk."""
        chunk = self.make(data)
        await self.send(chunk)
        self.offset += len(data)
        self.previous = chunk.hash
        self._hasher.update(data)

    async def announced(self, size: int) -> Checkpoint:
        """Wait until a size is announced, and return that checkpoint."""
        while self.checkpoint.size < size:
            await self.receive(Checkpoint)
        return self.checkpoint

    async def granted(self, until: int) -> None:
        """Wait until bytes up to ``until`` may be sent."""
        while self.until < until:
            await self.receive(Window)

    async def finish(self, *, size: int | None = None, head: bytes | None = None) -> None:
        """Say that the input has ended."""
        await self.send(Finish(self.offset if size is None else size, self.head if head is None else head))

    async def finished(self) -> Finished:
        """End the input, and return the answer."""
        await self.finish()
        finished = await self.receive(Finished)
        await self.close()
        return finished

    async def abort(self, reason: str) -> Finished:
        """Give up, and return the answer."""
        await self.send(Abort(reason))
        finished = await self.receive(Finished)
        await self.close()
        return finished


async def eventually(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait for what nothing announces: asks again and again until ``condition`` is true.

    Raises:
        TimeoutError: It does not come true.
    """
    async with asyncio.timeout(seconds):
        while True:
            answer = condition()
            if await answer if isinstance(answer, Awaitable) else answer:
                return
            await asyncio.sleep(0.005)


async def is_gone(client: ConnectedClient, id: str) -> bool:
    """Return whether there is no such resource."""
    try:
        await client.status(id)
    except NotFound:
        return True
    return False
