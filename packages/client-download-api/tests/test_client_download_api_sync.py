"""The blocking façade says and does what the asynchronous interface does, and its files are files."""

import asyncio
import gc
import gzip
import inspect
import io
import os
import shutil
import threading
import zipfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import given
from hypothesis import strategies as st

from tailrace_client_download_api import (
    EVERYTHING,
    FROM_START,
    NO_ATTRIBUTES,
    DataChunk,
    DownloadClient,
    RemoteResource,
    ResourceClient,
    sync,
)
from tailrace_client_download_api._line_splitter import LineSplitter
from tailrace_common_api import (
    Context,
    ContextEvent,
    ContextEventKind,
    ContextNotFound,
    ContextState,
    FromOffset,
    InvalidArgument,
    LastBytes,
    LastLines,
    ListFilter,
    Metadata,
    NotFound,
    Page,
    Position,
    RangeNotSatisfiable,
    ResourceState,
    Start,
    Status,
    Visibility,
)

PIECE = 1000


class MemoryResource(RemoteResource):
    """A resource in memory, cut into pieces of 1,000 bytes; records what was asked."""

    def __init__(self, content: bytes, *, state: ResourceState = ResourceState.COMPLETED) -> None:
        self.content = content
        self.state = state
        self.requests: list[str] = []
        self.running = 0
        self.idle = threading.Event()
        self.closed = False

    id = "1"

    def current(self, version: int = 1) -> Status:
        return Status(
            reference="memory://here/r/1",
            id="1",
            version=version,
            state=self.state,
            size=len(self.content),
            lines=self.content.count(b"\n"),
            head=bytes(16),
            reason=None,
            alternatives=(),
            metadata=Metadata(name="memory", lines=True),
            visibility=Visibility.LIVE,
            created_at=0.0,
        )

    async def status(self) -> Status:
        self.requests.append("status")
        return self.current()

    async def statuses(self) -> AsyncGenerator[Status, None]:
        for version in (1, 2):
            yield replace(self.current(version), state=ResourceState.IN_PROGRESS)
        yield self.current(3)

    async def _pieces(self, start: int, end: int, *, endless: bool = False) -> AsyncGenerator[DataChunk, None]:
        if not 0 <= start <= end <= len(self.content):
            raise RangeNotSatisfiable(start=start, end=end, size=len(self.content))
        self.running += 1
        try:
            for offset in range(start, end, PIECE):
                data = self.content[offset : min(offset + PIECE, end)]
                yield DataChunk(offset, memoryview(data))
            if endless:
                self.idle.set()
                await asyncio.Event().wait()
        finally:
            self.running -= 1

    def chunks(self, start: int = 0, end: int | None = None) -> AsyncGenerator[DataChunk, None]:
        self.requests.append(f"{start}:{end}")
        return self._pieces(start, len(self.content) if end is None else end)

    def last_chunks(self, count: int) -> AsyncGenerator[DataChunk, None]:
        return self._pieces(max(0, len(self.content) - count), len(self.content))

    def follow_chunks(
        self, start: Start = FROM_START, *, raise_on_failure: bool = True
    ) -> AsyncGenerator[DataChunk, None]:
        offsets = {FromOffset: 0, LastBytes: max(0, len(self.content) - 5), LastLines: 0}
        offset = start.offset if isinstance(start, FromOffset) else offsets[type(start)]
        return self._pieces(offset, len(self.content), endless=not self.state.terminal)

    def _line_pieces(self, first: int, end: int) -> AsyncGenerator[DataChunk, None]:
        lines = io.BytesIO(self.content).readlines()
        start = sum(map(len, lines[:first]))
        return self._pieces(start, start + sum(map(len, lines[first:end])))

    def line_chunks(self, first: int = 0, count: int | None = None) -> AsyncGenerator[DataChunk, None]:
        lines = len(io.BytesIO(self.content).readlines())
        return self._line_pieces(first, lines if count is None else min(lines, first + count))

    def last_line_chunks(self, count: int) -> AsyncGenerator[DataChunk, None]:
        lines = len(io.BytesIO(self.content).readlines())
        return self._line_pieces(max(0, lines - count), lines)

    async def locate_line(self, line: int) -> Position:
        return Position(line, line * 10)

    async def locate_offset(self, offset: int) -> Position:
        return Position(offset // 10, offset)

    async def heads(self, sizes: Sequence[int]) -> tuple[bytes, ...]:
        return tuple(size.to_bytes(16, "big") for size in sizes)

    async def save(self, path: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> Status:
        await asyncio.to_thread(_write, path, self.content)
        if progress is not None:
            progress(len(self.content))
        return self.current()

    async def delete(self) -> None:
        self.requests.append("delete")

    async def close(self) -> None:
        self.closed = True


def _write(path: str | os.PathLike[str], content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


class MemoryClient(DownloadClient, ResourceClient):
    def __init__(self, resource: MemoryResource) -> None:
        self.resource = resource

    def open(self, reference: str, *, token: str | None = None) -> MemoryResource:
        if reference != "1":
            raise NotFound(id=reference)
        return self.resource

    async def status(self, reference: str, *, token: str | None = None) -> Status:
        return self.open(reference).current()

    async def list_page(
        self, filter: ListFilter = EVERYTHING, *, limit: int = 100, page_token: str | None = None
    ) -> Page:
        page = int(page_token or 0)
        return Page((self.resource.current(page + 1),), None if page == 4 else str(page + 1))

    async def delete(self, reference: str, *, token: str | None = None) -> None:
        await self.open(reference).delete()

    async def create_context(self, attributes: Mapping[str, str] = NO_ATTRIBUTES) -> Context:
        return make_context(attributes)

    async def get_context(self, id: str) -> Context:
        if id != CONTEXT:
            raise ContextNotFound(id=id)
        return make_context({})

    async def close_context(self, id: str) -> Context:
        return replace(await self.get_context(id), state=ContextState.CLOSED, closed_at=2.0)

    async def context_events(self, id: str, *, after: int = 0) -> AsyncGenerator[ContextEvent, None]:
        await self.get_context(id)
        for sequence, kind in enumerate((ContextEventKind.CREATED, ContextEventKind.CLOSED), 1):
            if sequence > after:
                yield ContextEvent(
                    sequence=sequence, at=2.0, kind=kind, id=None, state=None, size=None, code=None, message=None
                )


CONTEXT = "c" * 32


def make_context(attributes: Mapping[str, str]) -> Context:
    return Context(
        id=CONTEXT,
        attributes=attributes,
        state=ContextState.OPEN,
        created_at=1.0,
        closed_at=None,
        resources=0,
        bytes=0,
    )


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


def names(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("asynchronous", "blocking"),
    [
        (RemoteResource, sync.RemoteResource),
        (DownloadClient, sync.DownloadClient),
        (ResourceClient, sync.ResourceClient),
    ],
)
def test_names_and_arguments_are_those_of_the_asynchronous_interface(asynchronous: type, blocking: type) -> None:
    assert names(asynchronous) == names(blocking) - {"file"}
    for method in names(asynchronous):
        if inspect.isfunction(getattr(asynchronous, method)):
            expected = inspect.signature(getattr(asynchronous, method)).parameters
            actual = inspect.signature(getattr(blocking, method)).parameters
            assert [(p.name, p.kind, p.default) for p in actual.values()] == [
                (p.name, p.kind, p.default) for p in expected.values()
            ]


def test_every_operation_answers_as_the_asynchronous_one(portal: BlockingPortal, tmp_path: os.PathLike[str]) -> None:
    content = b"".join(b"line %d\r\n" % number for number in range(1000)) + b"unterminated"
    behind = MemoryResource(content)
    lines = io.BytesIO(content).readlines()
    with sync.DownloadClient(portal, MemoryClient(behind)).open("1") as resource:
        assert resource.id == "1"
        assert resource.status() == behind.current()
        assert [status.version for status in resource.statuses()] == [1, 2, 3]
        assert resource.wait().version == 3
        assert b"".join(bytes(chunk.data) for chunk in resource.chunks(5, 5000)) == content[5:5000]
        assert b"".join(bytes(chunk.data) for chunk in resource.last_chunks(1500)) == content[-1500:]
        assert b"".join(bytes(chunk.data) for chunk in resource.follow_chunks()) == content
        assert b"".join(resource.follow(10)) == content[10:]
        assert b"".join(resource.follow(last_bytes=5)) == content[-5:]
        assert b"".join(resource.follow(last_lines=5)) == content
        assert resource.read(5, 10) == content[5:10]
        assert resource.read_last(10) == content[-10:]
        assert list(resource.lines()) == lines
        assert list(resource.lines(10, 20)) == lines[10:30]
        assert list(resource.lines(last=3)) == lines[-3:]
        assert resource.read_lines(last=3) == lines[-3:]
        assert b"".join(bytes(chunk.data) for chunk in resource.line_chunks(1, 2)) == b"".join(lines[1:3])
        assert b"".join(bytes(chunk.data) for chunk in resource.last_line_chunks(2)) == b"".join(lines[-2:])
        assert resource.locate_line(3) == Position(3, 30)
        assert resource.locate_offset(35) == Position(3, 35)
        assert resource.heads([1, 2]) == ((1).to_bytes(16, "big"), (2).to_bytes(16, "big"))
        path = os.path.join(tmp_path, "saved")
        seen: list[int] = []
        assert resource.save(path, progress=seen.append) == behind.current()
        assert seen == [len(content)]
        with open(path, "rb") as file:
            assert file.read() == content
        resource.delete()
        assert behind.requests[-1] == "delete"
    assert behind.closed


def test_a_client_answers_without_opening(portal: BlockingPortal) -> None:
    behind = MemoryResource(b"x")
    client = sync.ResourceClient(portal, MemoryClient(behind))
    assert client.status("1") == behind.current()
    assert client.list_page(page_token="3").next_token == "4"
    assert [status.version for status in client.list()] == [1, 2, 3, 4, 5]
    client.delete("1")
    assert behind.requests == ["delete"]
    with pytest.raises(NotFound):
        client.status("2")


def test_contexts(portal: BlockingPortal) -> None:
    client = sync.ResourceClient(portal, MemoryClient(MemoryResource(b"x")))
    assert client.create_context({"run": "7"}).attributes == {"run": "7"}
    assert client.create_context().attributes == {}
    assert client.get_context(CONTEXT).state is ContextState.OPEN
    assert client.close_context(CONTEXT).closed_at == 2.0
    assert [event.sequence for event in client.context_events(CONTEXT)] == [1, 2]
    assert [event.kind for event in client.context_events(CONTEXT, after=1)] == [ContextEventKind.CLOSED]
    for operation in (client.get_context, client.close_context, lambda name: list(client.context_events(name))):
        with pytest.raises(ContextNotFound):
            operation("other")


def test_errors_reach_the_iterating_thread(portal: BlockingPortal) -> None:
    resource = sync.RemoteResource(portal, MemoryResource(b"123"))
    with pytest.raises(RangeNotSatisfiable):
        list(resource.chunks(2, 5))
    with pytest.raises(InvalidArgument, match="last"):
        list(resource.lines(1, last=1))
    with pytest.raises(InvalidArgument, match="more than one"):
        list(resource.follow(1, last_bytes=1))


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_follower_that_is_left_ends_its_request(portal: BlockingPortal, how: str) -> None:
    behind = MemoryResource(b"a\nb\n", state=ResourceState.IN_PROGRESS)
    follower = sync.RemoteResource(portal, behind).follow()
    assert next(follower) == b"a\nb\n"
    behind.idle.wait()
    assert behind.running == 1
    if how == "close":
        follower.close()
    else:
        del follower
        gc.collect()
        portal.call(_until_ended, behind)
    assert behind.running == 0


async def _until_ended(resource: MemoryResource) -> None:
    while resource.running:  # noqa: ASYNC110 - what is looked at is state of a fake that tells nobody
        await asyncio.sleep(0)


def test_lines_that_are_left_end_their_request(portal: BlockingPortal) -> None:
    behind = MemoryResource(b"a\n" * 10_000_000)
    lines = sync.RemoteResource(portal, behind).lines()
    assert next(lines) == b"a\n"
    assert inspect.isgenerator(lines)
    lines.close()
    assert behind.running == 0


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"\n", b"\r\n", b"a\nb", b""])))
def test_lines_do_not_depend_on_how_the_bytes_were_cut(pieces: list[bytes]) -> None:
    splitter = LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(memoryview(piece))] + splitter.rest()
    assert lines == io.BytesIO(b"".join(pieces)).readlines()
    assert splitter.rest() == []


class TestFile:
    CONTENT = bytes(range(256)) * 4000

    def test_reads_as_a_file(self, portal: BlockingPortal) -> None:
        with sync.RemoteResource(portal, MemoryResource(self.CONTENT)).file() as file:
            assert file.readable()
            assert file.seekable()
            assert not file.writable()
            assert file.read(10) == self.CONTENT[:10]
            assert file.tell() == 10
            assert file.seek(-5, io.SEEK_END) == len(self.CONTENT) - 5
            assert file.read() == self.CONTENT[-5:]
            assert file.read(1) == b""
            assert file.seek(len(self.CONTENT) + 10) == len(self.CONTENT) + 10
            assert file.read(1) == b""
            file.seek(0)
            assert file.read() == self.CONTENT
            with pytest.raises(ValueError, match="before the start"):
                file.seek(-1)
        with pytest.raises(ValueError, match="closed"):
            file.read(1)

    def test_copies(self, portal: BlockingPortal) -> None:
        target = io.BytesIO()
        behind = MemoryResource(self.CONTENT)
        with sync.RemoteResource(portal, behind).file() as file:
            shutil.copyfileobj(file, target)
        assert target.getvalue() == self.CONTENT
        # One request for the first bytes, and one stream for the others.
        assert behind.requests == ["status", "0:262144", "262144:1024000"]

    def test_decompresses_and_decodes(self, portal: BlockingPortal) -> None:
        text = "".join(f"Zeile {number} äöü\n" for number in range(20_000))
        resource = sync.RemoteResource(portal, MemoryResource(gzip.compress(text.encode())))
        with resource.file() as file, gzip.open(file, "rt", encoding="utf-8") as unpacked:
            assert unpacked.read() == text
        plain = sync.RemoteResource(portal, MemoryResource(text.encode()))
        with io.TextIOWrapper(plain.file(), encoding="utf-8") as wrapper:
            assert list(wrapper) == text.splitlines(keepends=True)

    def test_reads_an_archive_here_and_there(self, portal: BlockingPortal) -> None:
        packed = io.BytesIO()
        members = {f"{number}.bin": os.urandom(200_000) for number in range(10)}
        with zipfile.ZipFile(packed, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        resource = sync.RemoteResource(portal, MemoryResource(packed.getvalue()))
        with resource.file() as file, zipfile.ZipFile(file) as archive:
            for name in reversed(archive.namelist()):
                assert archive.read(name) == members[name]

    def test_ends_at_the_size_at_opening_or_at_the_last_seek(self, portal: BlockingPortal) -> None:
        behind = MemoryResource(b"12345", state=ResourceState.IN_PROGRESS)
        with sync.RemoteResource(portal, behind).file() as file:
            behind.content += b"67890"
            assert file.read() == b"12345"
            assert file.read() == b""
            assert file.seek(0, io.SEEK_END) == 10
            file.seek(5)
            assert file.read() == b"67890"

    def test_a_dropped_file_ends_its_request(self, portal: BlockingPortal) -> None:
        behind = MemoryResource(self.CONTENT * 3)
        file = sync.RemoteResource(portal, behind).file()
        file.read(300_000)
        file.read(300_000)
        assert behind.running == 1
        del file
        gc.collect()
        portal.call(_until_ended, behind)
        assert behind.running == 0
