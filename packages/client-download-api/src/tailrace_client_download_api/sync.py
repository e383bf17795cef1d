"""The same interfaces for blocking code: a façade over the asynchronous ones.

The names are those of the asynchronous interfaces, and so are guarantees and errors. Everything runs in one event loop
in another thread, behind a portal. Objects may be used from any thread; one thread at a time reads from one iterator or
file object.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import Self

from tailrace_client_download_api import _client as asynchronous
from tailrace_client_download_api._blocking_query import RecordStream
from tailrace_client_download_api._blocking_records import RecordClient
from tailrace_client_download_api._blocking_work import Delivery, RecordConsumer
from tailrace_client_download_api._client import EVERYTHING, FROM_START, NO_ATTRIBUTES, DataChunk
from tailrace_client_download_api._file import ResourceFile, open_file
from tailrace_client_download_api._line_splitter import LineSplitter
from tailrace_common_api import (
    MEBIBYTE,
    Context,
    ContextEvent,
    InvalidArgument,
    ListFilter,
    Page,
    Position,
    Start,
    Status,
    TailraceError,
)
from tailrace_common_api.blocking import BlockingIterator, Portal, call, call_plain

__all__ = [
    "Delivery",
    "DownloadClient",
    "RecordClient",
    "RecordConsumer",
    "RecordStream",
    "RemoteResource",
    "ResourceClient",
    "ResourceFile",
]

# Bytes fetched in front of the reader, so that receiving and using overlap.
_AHEAD = MEBIBYTE


def _bytes_of(chunk: DataChunk) -> int:
    return len(chunk.data)


class RemoteResource:
    """A resource on a server, for blocking code; see :class:`tailrace_client_download_api.RemoteResource`.

    Iterators end their request when they are closed, dropped, or used up.
    """

    def __init__(self, portal: Portal, resource: asynchronous.RemoteResource) -> None:
        self._portal = portal
        self._resource = resource

    @property
    def id(self) -> str:
        """Resource id."""
        return self._resource.id

    def status(self) -> Status:
        """Return the current status."""
        return call(self._portal, self._resource.status)

    def statuses(self) -> BlockingIterator[Status]:
        """Yield the current status, then the newest whenever it changed; ends after the terminal one."""
        return BlockingIterator(self._portal, self._resource.statuses())

    def chunks(self, start: int = 0, end: int | None = None) -> BlockingIterator[DataChunk]:
        """Yield the bytes ``[start, end)``; ``None`` stands for the size at the time of the request."""
        return self._iterate(self._resource.chunks(start, end))

    def last_chunks(self, count: int) -> BlockingIterator[DataChunk]:
        """Yield the last ``count`` bytes, or all there are when there are fewer."""
        return self._iterate(self._resource.last_chunks(count))

    def follow_chunks(self, start: Start = FROM_START, *, raise_on_failure: bool = True) -> BlockingIterator[DataChunk]:
        """Yield what is there from ``start``, then what is announced, until the resource ends."""
        return self._iterate(self._resource.follow_chunks(start, raise_on_failure=raise_on_failure))

    def line_chunks(self, first: int = 0, count: int | None = None) -> BlockingIterator[DataChunk]:
        """Yield the bytes of the lines ``[first, first + count)``, terminators kept; ``None`` for all there are."""
        return self._iterate(self._resource.line_chunks(first, count))

    def last_line_chunks(self, count: int) -> BlockingIterator[DataChunk]:
        """Yield the bytes of the last ``count`` lines, or of all when there are fewer."""
        return self._iterate(self._resource.last_line_chunks(count))

    def locate_line(self, line: int) -> Position:
        """Return where ``line`` starts; ``line == lines`` gives the end of the last readable line."""
        return call(self._portal, self._resource.locate_line, line)

    def locate_offset(self, offset: int) -> Position:
        """Return the line that holds byte ``offset``, and where that line starts."""
        return call(self._portal, self._resource.locate_offset, offset)

    def heads(self, sizes: Sequence[int]) -> tuple[bytes, ...]:
        """Return the heads at ``sizes``, in their order."""
        return call(self._portal, self._resource.heads, sizes)

    def delete(self) -> None:
        """Delete the resource."""
        call(self._portal, self._resource.delete)

    @property
    def interruption(self) -> TailraceError | None:
        """Why an operation has no connection at the moment, while it tries to come back; ``None`` if none does."""
        return self._resource.interruption

    def interruptions(self) -> BlockingIterator[TailraceError | None]:
        """Yield :attr:`interruption` whenever it changed, latest wins; ends when the resource is closed."""
        return BlockingIterator(self._portal, self._resource.interruptions())

    def close(self) -> None:
        """Release the resource; requests that still run are cancelled. Idempotent."""
        call(self._portal, self._resource.close)

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes ``[start, end)``. All of them are held in memory."""
        return call(self._portal, self._resource.read, start, end)

    def read_last(self, count: int) -> bytes:
        """Return the last ``count`` bytes. All of them are held in memory."""
        return call(self._portal, self._resource.read_last, count)

    def read_lines(self, first: int | None = None, count: int | None = None, *, last: int | None = None) -> list[bytes]:
        """Return lines with their terminators, all held in memory; :meth:`lines` streams them."""
        return call(self._portal, self._resource.read_lines, first, count, last=last)

    def lines(self, first: int | None = None, count: int | None = None, *, last: int | None = None) -> Iterator[bytes]:
        """Yield lines with their terminators, one by one; arguments and errors as for :meth:`read_lines`.

        Holds one line in memory at a time; for lines of any length use :meth:`line_chunks`.
        """
        if last is None:
            return _split(self.line_chunks(first or 0, count))
        if first is not None or count is not None:
            raise InvalidArgument(field="last", problem="cannot be combined with first and count")
        return _split(self.last_line_chunks(last))

    def follow(
        self,
        start: int = 0,
        *,
        last_bytes: int | None = None,
        last_lines: int | None = None,
        raise_on_failure: bool = True,
    ) -> BlockingIterator[bytes]:
        """Yield the bytes from ``start``, or from the last bytes or lines, until the resource ends."""
        source = self._resource.follow(
            start, last_bytes=last_bytes, last_lines=last_lines, raise_on_failure=raise_on_failure
        )
        return BlockingIterator(self._portal, source, ahead=_AHEAD, cost=len)

    def wait(self) -> Status:
        """Wait until the resource ends and return its final status."""
        return call(self._portal, self._resource.wait)

    def save(self, path: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> Status:
        """Save all bytes up to the current size as a file; continues a partial one whose head agrees.

        ``progress`` is called from the loop's thread.
        """
        return call(self._portal, self._resource.save, path, progress=progress)

    def file(self) -> ResourceFile:
        """Return a buffered, seekable, read-only binary file object; closing it leaves the resource open.

        It is what ``open(path, "rb")`` returns, as far as reading goes: it works with ``shutil.copyfileobj``,
        ``gzip.open``, ``io.TextIOWrapper`` and the like. It ends at the size that the resource has when the file is
        opened, and, while the resource still grows, at the size that it has at the last ``seek`` that left the buffer.
        Reading in order streams; reading here and there asks for what is needed.
        """
        return open_file(self)

    def _iterate(self, source: AsyncGenerator[DataChunk, None]) -> BlockingIterator[DataChunk]:
        return BlockingIterator(self._portal, source, ahead=_AHEAD, cost=_bytes_of)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _split(chunks: BlockingIterator[DataChunk]) -> Iterator[bytes]:
    splitter = LineSplitter()
    with closing(chunks):
        for chunk in chunks:
            yield from splitter.feed(chunk.data)
    yield from splitter.rest()


class DownloadClient:
    """Opens resources for reading, for blocking code; see :class:`tailrace_client_download_api.DownloadClient`."""

    def __init__(self, portal: Portal, client: asynchronous.DownloadClient) -> None:
        self._download_portal = portal
        self._download_client = client

    def open(self, reference: str, *, token: str | None = None) -> RemoteResource:
        """Open a resource; nothing is sent before the first operation.

        Raises:
            InvalidReference: ``reference`` is malformed.
        """
        resource = call_plain(self._download_portal, self._download_client.open, reference, token=token)
        return RemoteResource(self._download_portal, resource)


class ResourceClient:
    """Asks for resources without reading them, and for the contexts that own them, for blocking code.

    See :class:`tailrace_client_download_api.ResourceClient`.
    """

    def __init__(self, portal: Portal, client: asynchronous.ResourceClient) -> None:
        self._resource_portal = portal
        self._resource_client = client

    def status(self, reference: str, *, token: str | None = None) -> Status:
        """Return the current status."""
        return call(self._resource_portal, self._resource_client.status, reference, token=token)

    def list_page(self, filter: ListFilter = EVERYTHING, *, limit: int = 100, page_token: str | None = None) -> Page:
        """Return a page of the resources that ``filter`` selects, in order of creation."""
        return call(self._resource_portal, self._resource_client.list_page, filter, limit=limit, page_token=page_token)

    def delete(self, reference: str, *, token: str | None = None) -> None:
        """Delete a resource: its uploader and its readers are told, and nothing of it is left."""
        call(self._resource_portal, self._resource_client.delete, reference, token=token)

    def create_context(self, attributes: Mapping[str, str] = NO_ATTRIBUTES) -> Context:
        """Create a context, for uploads to name."""
        return call(self._resource_portal, self._resource_client.create_context, attributes)

    def get_context(self, id: str) -> Context:
        """Return a context as it is now."""
        return call(self._resource_portal, self._resource_client.get_context, id)

    def close_context(self, id: str) -> Context:
        """Close a context and return it: its unfinished uploads fail, and it takes no more. Idempotent."""
        return call(self._resource_portal, self._resource_client.close_context, id)

    def context_events(self, id: str, *, after: int = 0) -> BlockingIterator[ContextEvent]:
        """Yield the events of a context behind number ``after``; ends after the event that it was closed."""
        return BlockingIterator(self._resource_portal, self._resource_client.context_events(id, after=after))

    def list(self, filter: ListFilter = EVERYTHING) -> BlockingIterator[Status]:
        """Yield the resources that ``filter`` selects, in order of creation, page by page."""
        return BlockingIterator(self._resource_portal, self._resource_client.list(filter), ahead=100)
