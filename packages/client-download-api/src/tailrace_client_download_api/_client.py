"""Reading resources, complete or still growing."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self

from tailrace_client_download_api._line_splitter import LineSplitter
from tailrace_common_api import (
    Checkpoint,
    ConnectionLost,
    Context,
    ContextEvent,
    FromOffset,
    InvalidArgument,
    LastBytes,
    LastLines,
    ListFilter,
    Page,
    Position,
    Start,
    Status,
    TailraceError,
)

Buffer = bytes | bytearray | memoryview

FROM_START = FromOffset(0)
"""Follow from the first byte."""
EVERYTHING = ListFilter()
"""Select every resource."""
NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})
"""Say nothing of a context."""


@dataclass(frozen=True, slots=True)
class DataChunk:
    """Verified bytes of a resource."""

    offset: int
    """Offset of the first byte in the resource."""
    data: Buffer
    """The bytes, as they arrived: not copied, so convert to ``bytes`` to keep part of them."""
    checkpoint: Checkpoint | None = None
    """The checkpoint directly behind these bytes, when the server announced one there; it was compared when the
    stream started at 0."""


class RemoteResource(ABC):
    """A resource on a server, opened for reading.

    Works during the upload and after it. Any number of operations run concurrently, each can be cancelled alone, and
    closing an async generator ends its request on the server. Ranges are half-open ``[start, end)``.

    Every method raises ``NotFound`` or ``Deleted`` when there is no such resource (any more).

    When the connection is lost, or the server restarts or is overloaded, every operation goes on by itself behind what
    it has delivered, for as long as the client's ``reconnect_timeout`` says; :attr:`interruption` tells. After that it
    raises ``ConnectionLost``, or whichever error was the last. ``DataLost`` says that the server has less than was
    delivered. What has never worked fails at once, so that a wrong address does.
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """Resource id."""

    @property
    def interruption(self) -> TailraceError | None:
        """Why an operation has no connection at the moment, while it tries to come back; ``None`` if none does."""
        return None

    async def interruptions(self) -> AsyncGenerator[TailraceError | None, None]:
        """Yield :attr:`interruption` whenever it changed, latest wins; ends when the resource is closed."""
        if self.interruption is not None:
            yield self.interruption

    @abstractmethod
    async def status(self) -> Status:
        """Return the current status."""

    @abstractmethod
    def statuses(self) -> AsyncGenerator[Status, None]:
        """Yield the current status, then the newest whenever it changed; ends after the terminal one.

        Versions strictly rise; intermediate ones may be skipped.
        """

    @abstractmethod
    def chunks(self, start: int = 0, end: int | None = None) -> AsyncGenerator[DataChunk, None]:
        """Yield the bytes ``[start, end)``; ``None`` stands for the size at the time of the request.

        Raises:
            RangeNotSatisfiable: Not ``0 <= start <= end <= size``.
            IntegrityError: What arrived is not what was stored; nothing of the bad chunk was yielded.
        """

    @abstractmethod
    def last_chunks(self, count: int) -> AsyncGenerator[DataChunk, None]:
        """Yield the last ``count`` bytes, or all there are when there are fewer.

        Raises:
            InvalidArgument: ``count`` is negative.
            IntegrityError: See :meth:`chunks`.
        """

    @abstractmethod
    def follow_chunks(
        self, start: Start = FROM_START, *, raise_on_failure: bool = True
    ) -> AsyncGenerator[DataChunk, None]:
        """Yield what is there from ``start``, then what is announced, until the resource ends.

        Args:
            start: Where to start: an offset, the last bytes, or the last lines.
            raise_on_failure: Whether to raise ``ResourceFailed`` behind the last byte of a FAILED resource.

        Raises:
            ResourceFailed: The resource failed; raised behind its last byte.
            RangeNotSatisfiable: ``start`` is beyond the size.
            LineAccessDisabled: Lines were asked for where there are none.
            IntegrityError: See :meth:`chunks`.
        """

    @abstractmethod
    def line_chunks(self, first: int = 0, count: int | None = None) -> AsyncGenerator[DataChunk, None]:
        """Yield the bytes of the lines ``[first, first + count)``, terminators kept; ``None`` for all there are.

        Chunks do not end at line ends. The last line is complete, or is the unterminated last one of a resource that
        has ended.

        Raises:
            LineAccessDisabled: The resource has no line access.
            LineRangeNotSatisfiable: Not ``0 <= first <= lines``, or ``count`` is negative.
            IntegrityError: See :meth:`chunks`.
        """

    @abstractmethod
    def last_line_chunks(self, count: int) -> AsyncGenerator[DataChunk, None]:
        """Yield the bytes of the last ``count`` lines, or of all when there are fewer.

        Raises:
            InvalidArgument: ``count`` is negative.
            LineAccessDisabled, IntegrityError: See :meth:`line_chunks`.
        """

    @abstractmethod
    async def locate_line(self, line: int) -> Position:
        """Return where ``line`` starts; ``line == lines`` gives the end of the last readable line.

        Raises:
            LineAccessDisabled: The resource has no line access.
            LineRangeNotSatisfiable: Not ``0 <= line <= lines``.
        """

    @abstractmethod
    async def locate_offset(self, offset: int) -> Position:
        """Return the line that holds byte ``offset``, and where that line starts.

        Raises:
            LineAccessDisabled: The resource has no line access.
            RangeNotSatisfiable: Not ``0 <= offset <= size``.
        """

    @abstractmethod
    async def heads(self, sizes: Sequence[int]) -> tuple[bytes, ...]:
        """Return the heads at ``sizes``, in their order.

        Raises:
            RangeNotSatisfiable: A size is not within ``[0, size]``.
        """

    @abstractmethod
    async def save(self, path: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> Status:
        """Save the bytes ``[0, size)`` as a file, where ``size`` is the one at the time of the call.

        A file that is there already must be a prefix of the resource, which is proven by its head; it is then
        continued. Any other file is left as it is. What was saved when this fails or is cancelled is verified and
        stays, so that the next call continues.

        Args:
            path: Where; folders are not made.
            progress: Called with the number of bytes of the file that are there, whenever that changed.

        Returns:
            The status whose size and head the file has.

        Raises:
            IntegrityError: The file is no prefix of the resource, or what arrived is not what was stored.
            OSError: The file cannot be read or written.
        """

    @abstractmethod
    async def delete(self) -> None:
        """Delete the resource."""

    @abstractmethod
    async def close(self) -> None:
        """Release the resource; requests that still run are cancelled. Idempotent."""

    async def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes ``[start, end)``; see :meth:`chunks`. All of them are held in memory."""
        return await _collect(self.chunks(start, end))

    async def read_last(self, count: int) -> bytes:
        """Return the last ``count`` bytes; see :meth:`last_chunks`. All of them are held in memory."""
        return await _collect(self.last_chunks(count))

    async def read_lines(
        self, first: int | None = None, count: int | None = None, *, last: int | None = None
    ) -> list[bytes]:
        """Return lines with their terminators, all held in memory; :meth:`lines` streams them.

        Args:
            first: First line; 0 when missing.
            count: Number of lines; all from ``first`` when missing.
            last: Number of lines at the end, instead of ``first`` and ``count``.

        Raises:
            InvalidArgument: ``last`` together with ``first`` or ``count``, or negative.
            LineAccessDisabled, LineRangeNotSatisfiable, IntegrityError: See :meth:`line_chunks`.
        """
        return [line async for line in self.lines(first, count, last=last)]

    async def lines(
        self, first: int | None = None, count: int | None = None, *, last: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield lines with their terminators, one by one; arguments and errors as for :meth:`read_lines`.

        Holds one line in memory at a time; for lines of any length use :meth:`line_chunks`.
        """
        if last is not None and (first is not None or count is not None):
            raise InvalidArgument(field="last", problem="cannot be combined with first and count")
        source = self.last_line_chunks(last) if last is not None else self.line_chunks(first or 0, count)
        splitter = LineSplitter()
        async with aclosing(source):
            async for chunk in source:
                for line in splitter.feed(chunk.data):
                    yield line
        for line in splitter.rest():
            yield line

    async def follow(
        self,
        start: int = 0,
        *,
        last_bytes: int | None = None,
        last_lines: int | None = None,
        raise_on_failure: bool = True,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from ``start``, or from the last bytes or lines, until the resource ends.

        See :meth:`follow_chunks`, which does the same without copying.

        Raises:
            InvalidArgument: More than one of ``start``, ``last_bytes`` and ``last_lines``, or a negative one.
        """
        given = (start != 0) + (last_bytes is not None) + (last_lines is not None)
        if given > 1:
            raise InvalidArgument(field="start", problem="more than one of start, last_bytes and last_lines")
        origin: Start = FromOffset(start)
        if last_bytes is not None:
            origin = LastBytes(last_bytes)
        elif last_lines is not None:
            origin = LastLines(last_lines)
        async with aclosing(self.follow_chunks(origin, raise_on_failure=raise_on_failure)) as chunks:
            async for chunk in chunks:
                yield bytes(chunk.data)

    async def wait(self) -> Status:
        """Wait until the resource ends and return its final status."""
        async with aclosing(self.statuses()) as statuses:
            async for status in statuses:
                if status.state.terminal:
                    return status
        raise ConnectionLost("the statuses ended before the resource did")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def _collect(chunks: AsyncGenerator[DataChunk, None]) -> bytes:
    async with aclosing(chunks):
        return b"".join([chunk.data async for chunk in chunks])


class DownloadClient(ABC):
    """Opens resources for reading; any number of them over one client."""

    @abstractmethod
    def open(self, reference: str, *, token: str | None = None) -> RemoteResource:
        """Open a resource; nothing is sent before the first operation.

        Args:
            reference: A reference, whatever its base, or a bare id.
            token: Upload token, to read an atomic resource before it is complete.

        Raises:
            InvalidReference: ``reference`` is malformed.
        """


class ResourceClient(ABC):
    """Asks for resources without reading them, and for the contexts that own them.

    Every method raises ``ConnectionLost`` when the connection ends.
    """

    @abstractmethod
    async def status(self, reference: str, *, token: str | None = None) -> Status:
        """Return the current status.

        Raises:
            InvalidReference: ``reference`` is malformed.
            NotFound: There is no such resource.
        """

    @abstractmethod
    async def list_page(
        self, filter: ListFilter = EVERYTHING, *, limit: int = 100, page_token: str | None = None
    ) -> Page:
        """Return a page of the resources that ``filter`` selects, in order of creation.

        Raises:
            InvalidArgument: ``limit`` is below 1, or ``page_token`` is not one of this server.
        """

    @abstractmethod
    async def delete(self, reference: str, *, token: str | None = None) -> None:
        """Delete a resource: its uploader and its readers are told, and nothing of it is left.

        Raises:
            InvalidReference: ``reference`` is malformed.
            NotFound: There is no such resource.
        """

    @abstractmethod
    async def create_context(self, attributes: Mapping[str, str] = NO_ATTRIBUTES) -> Context:
        """Create a context, for uploads to name.

        When the connection is lost before the answer, the context may exist without being known to anyone.

        Args:
            attributes: What to say of it; the rules are those of labels.

        Raises:
            InvalidArgument: The attributes break a rule.
            QuotaExceeded: Too many contexts are open.
            PermissionDenied: The caller may not create contexts.
        """

    @abstractmethod
    async def get_context(self, id: str) -> Context:
        """Return a context as it is now.

        Raises:
            InvalidReference: ``id`` is malformed.
            ContextNotFound: There is no such context.
        """

    @abstractmethod
    async def close_context(self, id: str) -> Context:
        """Close a context and return it: its unfinished uploads fail, and it takes no more. Idempotent.

        Raises:
            InvalidReference: ``id`` is malformed.
            ContextNotFound: There is no such context.
            PermissionDenied: The caller may not close contexts.
        """

    @abstractmethod
    def context_events(self, id: str, *, after: int = 0) -> AsyncGenerator[ContextEvent, None]:
        """Yield the events of a context, those behind number ``after`` that the server still has and then new ones.

        Ends after the event that the context was closed. A lost connection is taken up again behind the last event
        that was yielded; numbers that are left out are events that the server did not keep long enough. A server that
        was restarted counts from 1 again.

        Raises:
            InvalidArgument: ``after`` is negative.
            InvalidReference: ``id`` is malformed.
            ContextNotFound: There is no such context.
        """

    async def list(self, filter: ListFilter = EVERYTHING) -> AsyncGenerator[Status, None]:
        """Yield the resources that ``filter`` selects, in order of creation, page by page."""
        page_token: str | None = None
        while True:
            page = await self.list_page(filter, page_token=page_token)
            for status in page.statuses:
                yield status
            page_token = page.next_token
            if page_token is None:
                return
