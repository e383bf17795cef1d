"""The chunk chain over gRPC's blocking API; see :mod:`tailrace_impl_grpc.chunk_chain`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Generic, NoReturn, Protocol, TypeVar

import grpc

from tailrace_common_api import MEBIBYTE, IntegrityError, TailraceError
from tailrace_impl_common import BlockingSource, MessageChainReceiver, MessageChainSender, read_pieces
from tailrace_impl_grpc._error_table import error_to_status, sent_error

M = TypeVar("M")
R = TypeVar("R")

CHUNK_SIZE = MEBIBYTE // 2
"""Bytes of a full chunk, unless told otherwise."""

CallMetadata = tuple[tuple[str, str | bytes], ...]


class Writable(Protocol):
    """A binary file object, as far as writing goes."""

    def write(self, data: bytes, /) -> object:
        """Write all of ``data``."""


Sink = Writable | Callable[[bytes], object]
"""What takes the bytes of a transfer: a buffered binary file object, or a function."""


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

    def messages(self, source: BlockingSource) -> Generator[M, None, None]:
        """Yield the messages of a transfer; what a server-streaming method returns.

        Bytes are passed on as they come. A file object is left open.

        Args:
            source: Bytes, a binary file object, or an iterable of bytes.

        Raises:
            InvalidArgument: The source is none of them.
            Exception: What the source raises; the transfer then has no end, and the receiver refuses it.
        """
        chain = MessageChainSender(self._build, chunk_size=self._chunk_size)
        for piece in read_pieces(source, chunk_size=self._chunk_size):
            yield from chain.feed(piece)
        yield chain.finish()

    def pieces(self, messages: Iterable[M]) -> Generator[bytes, None, None]:
        """Yield the proven bytes of a transfer; a call that is given is cancelled unless it is read to its end.

        Raises:
            IntegrityError: The transfer is not what was sent. Everything yielded before is.
        """
        chain = MessageChainReceiver(self._read)
        try:
            for message in messages:
                proven = chain.feed(message)
                if proven:
                    yield proven
            chain.finish()
        except BaseException:
            cancel = getattr(messages, "cancel", None)
            if cancel is not None:
                cancel()
            raise

    def upload(
        self,
        method: grpc.StreamUnaryMultiCallable[M, R],
        source: BlockingSource,
        *,
        timeout: float | None = None,
        metadata: CallMetadata | None = None,
    ) -> R:
        """Send a transfer to a client-streaming method and return its answer.

        Returns or raises as soon as the server has answered, even if the source has more. gRPC reads the source in a
        thread of its own; a read that runs then is the last.

        Args:
            method: Method of a stub.
            source: Bytes, a binary file object, or an iterable of bytes.
            timeout: Time for the whole transfer, in seconds.
            metadata: Metadata of the call.

        Raises:
            IntegrityError: What arrived is not what was sent.
            grpc.RpcError: The call failed for another reason.
            Exception: What the source raises; the call is then cancelled.
        """
        failures: list[BaseException] = []
        started = threading.Event()

        def requests() -> Iterator[M]:
            try:
                with closing(self.messages(source)) as messages:
                    yield from messages
            except GeneratorExit:
                raise
            except BaseException as exc:  # noqa: BLE001 - gRPC would log it, and tell the caller nothing of it
                failures.append(exc)
                started.wait()
                call.cancel()

        call = method.future(requests(), timeout=timeout, metadata=metadata)
        started.set()
        try:
            return call.result()
        except grpc.FutureCancelledError:
            if failures:
                raise failures[0] from None
            raise
        except grpc.RpcError as exc:
            if failures:
                raise failures[0] from None
            raise_sent_error(exc)
        finally:
            call.cancel()

    def accept(self, requests: Iterable[M], sink: Sink, context: grpc.ServicerContext) -> int:
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
            return self._into(sink, requests)
        except IntegrityError as exc:
            status, message, metadata = error_to_status(exc)
            context.set_trailing_metadata(metadata)
            context.abort(status, message)

    def download(self, call: Iterable[M], sink: Sink) -> int:
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
            return self._into(sink, call)
        except grpc.RpcError as exc:
            raise_sent_error(exc)

    def _into(self, sink: Sink, messages: Iterable[M]) -> int:
        write = sink if callable(sink) else sink.write
        size = 0
        with closing(self.pieces(messages)) as pieces:
            for piece in pieces:
                write(piece)
                size += len(piece)
        return size


def raise_sent_error(exc: grpc.RpcError) -> NoReturn:
    """Raise the typed error that a server has sent with a failed call, or else the failure itself."""
    metadata = getattr(exc, "trailing_metadata", lambda: None)()
    error: TailraceError | None = sent_error(metadata or ())
    if error is not None:
        raise error from exc
    raise exc
