"""The chunk chain over ``grpc.aio``; see :mod:`tailrace_impl_grpc.chunk_chain.aio`."""

from __future__ import annotations

import asyncio
import inspect
import io
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from tailrace_common_api import IntegrityError
from tailrace_impl_common import MessageChainReceiver, MessageChainSender, Source, cancel_and_wait, iter_source
from tailrace_impl_grpc._call_status import CallStatus
from tailrace_impl_grpc._chunk_chain import CHUNK_SIZE, CallMetadata, Writable, raise_sent_error
from tailrace_impl_grpc._error_table import error_to_status

M = TypeVar("M")
R = TypeVar("R")

Sink = Writable | Callable[[bytes], object]
"""What takes the bytes of a transfer: a binary file object, which is written to in a thread, or a function, or any
object with a method ``write``; what either returns is awaited if it can be."""


class ChunkChain(Generic[M]):
    """How verified transfers look in one message type. Holds no state: one serves any number of transfers."""

    def __init__(
        self,
        *,
        build: Callable[[bytes, bytes], M],
        read: Callable[[M], tuple[bytes, bytes]],
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        """Describe a message type.

        Args:
            build: Makes a message from ``(bytes, hash of the previous chunk)``.
            read: Takes the same two out of a message.
            chunk_size: Most bytes of content in one message, at least 1. The whole message must stay below the limits
                of both sides, which are 4 MiB unless they were told otherwise.
        """
        self._build = build
        self._read = read
        self._chunk_size = chunk_size

    async def messages(self, source: Source) -> AsyncGenerator[M, None]:
        """Yield the messages of a transfer; what a server-streaming method yields.

        Bytes are passed on as they come. A file object is read in a thread, and left open.

        Args:
            source: Bytes, a binary file object, or an iterable of bytes, async or not.

        Raises:
            InvalidArgument: The source is none of them.
            Exception: What the source raises; the transfer then has no end, and the receiver refuses it.
        """
        chain = MessageChainSender(self._build, chunk_size=self._chunk_size)
        async with aclosing(iter_source(source, chunk_size=self._chunk_size)) as pieces:
            async for piece in pieces:
                for message in chain.feed(piece):
                    yield message
        yield chain.finish()

    async def pieces(self, messages: AsyncIterable[M]) -> AsyncGenerator[bytes, None]:
        """Yield the proven bytes of a transfer; a call that is given is cancelled unless it is read to its end.

        Raises:
            IntegrityError: The transfer is not what was sent. Everything yielded before is.
        """
        chain = MessageChainReceiver(self._read)
        try:
            async for message in messages:
                proven = chain.feed(message)
                if proven:
                    yield proven
            chain.finish()
        except BaseException:
            cancel = getattr(messages, "cancel", None)
            if cancel is not None:
                cancel()
            raise

    async def upload(
        self,
        method: grpc.aio.StreamUnaryMultiCallable[M, R],
        source: Source,
        *,
        timeout: float | None = None,
        metadata: CallMetadata | None = None,
    ) -> R:
        """Send a transfer to a client-streaming method and return its answer.

        Returns or raises as soon as the server has answered, even if the source has more. Cancelling it cancels the
        call.

        Args:
            method: Method of a stub.
            source: Bytes, a binary file object, or an iterable of bytes, async or not.
            timeout: Time for the whole transfer, in seconds.
            metadata: Metadata of the call.

        Raises:
            IntegrityError: What arrived is not what was sent.
            grpc.RpcError: The call failed for another reason.
            Exception: What the source raises; the call is then cancelled.
        """
        call = method(timeout=timeout, metadata=metadata)
        status = CallStatus(call)
        writing = asyncio.ensure_future(self._write(call, source))
        answering = asyncio.ensure_future(_answer(call))
        try:
            await asyncio.wait((writing, answering), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                writing.result()
                await asyncio.wait((answering,))
            return answering.result()
        except grpc.aio.AioRpcError as exc:
            raise_sent_error(await status.behind(exc))
        finally:
            call.cancel()
            await cancel_and_wait(writing)
            await cancel_and_wait(answering)

    async def accept(self, requests: AsyncIterable[M], sink: Sink, context: grpc.aio.ServicerContext[M, Any]) -> int:
        """Take a transfer in a client-streaming method.

        A transfer that is not what was sent ends the call at once, with status DATA_LOSS: this then does not return.

        Args:
            requests: The method's request iterator.
            sink: Takes the proven bytes, in order.
            context: The method's context.

        Returns:
            The number of bytes.

        Raises:
            Exception: What the sink raises, and what ends the call.
        """
        try:
            return await self._into(sink, requests)
        except IntegrityError as exc:
            await context.abort(*error_to_status(exc))

    async def download(self, call: AsyncIterable[M], sink: Sink) -> int:
        """Take the transfer of a server-streaming call; the call is cancelled when it is not what was sent.

        Args:
            call: What the method of a stub has returned.
            sink: Takes the proven bytes, in order.

        Returns:
            The number of bytes.

        Raises:
            IntegrityError: The transfer is not what was sent; the sink has the bytes below the error's offset.
            grpc.RpcError: The call failed for another reason.
            Exception: What the sink raises; the call is then cancelled.
        """
        try:
            return await self._into(sink, call)
        except grpc.aio.AioRpcError as exc:
            raise_sent_error(exc)

    async def _write(self, call: grpc.aio.StreamUnaryCall[M, R], source: Source) -> None:
        async with aclosing(self.messages(source)) as messages:
            async for message in messages:
                try:
                    await call.write(message)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    # The answer says why.
                    return
        await call.done_writing()

    async def _into(self, sink: Sink, messages: AsyncIterable[M]) -> int:
        write = sink if callable(sink) else sink.write
        in_thread = isinstance(sink, io.IOBase)
        size = 0
        async with aclosing(self.pieces(messages)) as pieces:
            async for piece in pieces:
                written = await asyncio.to_thread(write, piece) if in_thread else write(piece)
                if inspect.isawaitable(written):
                    await written
                size += len(piece)
        return size


async def _answer(call: grpc.aio.StreamUnaryCall[M, R]) -> R:
    return await call
