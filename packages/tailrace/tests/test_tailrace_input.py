"""Input is passed on as it comes, and ends when it is told to."""

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace._input import StoppableInput


class Reader:
    """Reads an input in a thread; what comes is queued, and ``None`` at the end."""

    def __init__(self, source: StoppableInput) -> None:
        self.pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._read, args=(source,))
        self.thread.start()

    def _read(self, source: StoppableInput) -> None:
        for piece in source.pieces():
            self.pieces.put(piece)
        self.pieces.put(None)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_pipe_is_passed_on_at_once(pipe: tuple[int, int]) -> None:
    source = StoppableInput(pipe[0])
    reader = Reader(source)
    for data in (b"one", b"two", bytes(60_000)):
        os.write(pipe[1], data)
        received = b""
        while len(received) < len(data):
            piece = reader.pieces.get()
            assert piece is not None
            received += piece
        assert received == data
    source.stop()
    assert reader.pieces.get() is None
    source.close()
    reader.thread.join()


def test_what_a_pipe_holds_when_it_is_stopped_is_still_read(pipe: tuple[int, int]) -> None:
    source = StoppableInput(pipe[0])
    os.write(pipe[1], b"last words")
    source.stop()
    assert b"".join(source.pieces()) == b"last words"
    source.close()


def test_closing_wakes_a_reader_that_waits(pipe: tuple[int, int]) -> None:
    source = StoppableInput(pipe[0])
    reader = Reader(source)
    os.write(pipe[1], b"x")
    assert reader.pieces.get() == b"x"
    source.close()
    source.close()
    assert reader.pieces.get() is None
    reader.thread.join()


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
def test_a_file_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    descriptor = os.open(path, os.O_RDONLY)
    source = StoppableInput(descriptor)
    assert b"".join(source.pieces()) == path.read_bytes()
    source.close()
    os.close(descriptor)


def test_a_file_that_is_stopped_ends_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))
    descriptor = os.open(path, os.O_RDONLY)
    source = StoppableInput(descriptor)
    pieces = source.pieces()
    assert len(next(pieces)) == 1024 * 1024
    source.stop()
    assert list(pieces) == []
    source.close()
    os.close(descriptor)


def test_a_closed_pipe_ends(pipe: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"all")
    os.close(writer)
    source = StoppableInput(reader)
    assert b"".join(source.pieces()) == b"all"
    source.stop()
    source.close()
    source.stop()
    os.close(reader)
