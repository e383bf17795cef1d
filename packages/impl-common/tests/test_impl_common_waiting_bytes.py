"""Queues of bytes that overflow: to disk, or by losing their oldest lines."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace_impl_common._drop_oldest import DropOldestBytes, dropped_marker
from tailrace_impl_common._spool import Spool

KIB = 1024
MARKER = re.compile(rb"\[tailrace: (\d+) bytes \((\d+) lines\) were dropped here while the server was away\]\n")


def everything(waiting: Spool | DropOldestBytes) -> bytes:
    taken = []
    while waiting.size:
        taken.append(waiting.take())
        assert taken[-1]
    return b"".join(taken)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(min_value=1, max_value=900) | st.just(0), max_size=80),
    st.integers(min_value=1000, max_value=5000),
)
def test_a_spool_gives_back_what_it_got_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], room: int
) -> None:
    spool = Spool(tmp_path_factory.getbasetemp(), room)
    spool.open()
    given_, taken = b"", b""
    for number, length in enumerate(steps):
        data = bytes((number + index) % 256 for index in range(length))
        if data and spool.fits(length):
            spool.add(bytearray(data))
            given_ += data
            assert spool.size <= room
            assert spool.on_disk <= room
        else:
            taken += spool.take()
    taken += everything(spool)
    spool.close()
    assert taken == given_
    assert spool.take() == b""


def test_a_spool_touches_the_disk_only_when_much_waits(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "new" / "folder", 16 * KIB * KIB)
    spool.open()
    spool.add(b"a" * 100)
    assert (spool.on_disk, spool.take_blocks, spool.add_blocks(100)) == (0, False, False)
    assert spool.take() == b"a" * 100
    for number in range(20):
        spool.add(bytes([number]) * 256 * KIB)
    assert spool.on_disk >= 3 * KIB * KIB
    assert spool.take_blocks
    assert everything(spool) == b"".join(bytes([number]) * 256 * KIB for number in range(20))
    # Nothing is left of it, not even while it is open.
    assert os.listdir(tmp_path / "new" / "folder") == []
    spool.close()
    spool.close()


def test_a_spool_says_when_it_is_full(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    spool.open()
    assert spool.fits(10_000)
    spool.add(b"a" * 900)
    assert spool.fits(100)
    assert not spool.fits(101)
    spool.take()
    assert spool.fits(1000)
    spool.close()


def test_a_disk_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        Spool(tmp_path / "file", 1000).open()
    spool = Spool(tmp_path, 1000)
    spool.open()
    spool.add(b"a" * 500)
    spool.close()
    spool.add(b"a" * 300)
    with pytest.raises(OSError, match="closed"):
        spool.add(b"a" * 300)


def lines_of(count: int, start: int = 0) -> list[bytes]:
    return [b"line %06d %s\n" % (number, b"x" * (number % 40)) for number in range(start, start + count)]


def test_the_oldest_lines_are_dropped_and_one_marker_says_so() -> None:
    waiting = DropOldestBytes(4 * KIB)
    lines = lines_of(1000)
    for line in lines:
        waiting.add(line)
        assert waiting.size <= 4 * KIB
    kept = everything(waiting)
    marker = MARKER.match(kept)
    assert marker is not None
    size, count = map(int, marker.groups())
    rest = kept[marker.end() :]
    assert rest == b"".join(lines[count:])
    assert size == len(b"".join(lines[:count]))
    assert kept == dropped_marker(size, count) + rest
    # Half of the room at least is in use: no more was dropped than had to be.
    assert len(rest) > 3 * KIB


def test_what_was_taken_is_not_touched_and_its_line_is_completed() -> None:
    waiting = DropOldestBytes(2 * KIB)
    waiting.add(b"the begin")
    assert waiting.take() == b"the begin"
    waiting.add(b"ning is kept\n")
    for line in lines_of(200):
        waiting.add(line)
    kept = everything(waiting)
    assert kept.startswith(b"ning is kept\n[tailrace: ")
    assert MARKER.search(kept) is not None
    # The next loss has a marker of its own, since the first one was taken.
    for line in lines_of(200, 200):
        waiting.add(line)
    assert len(MARKER.findall(everything(waiting))) == 1


def test_bytes_without_ends_of_lines_are_cut_anywhere() -> None:
    waiting = DropOldestBytes(2 * KIB)
    waiting.add(b"a" * 100)
    assert waiting.take() == b"a" * 100
    waiting.add(bytes(10_000))
    kept = everything(waiting)
    marker = MARKER.search(kept)
    assert marker is not None
    assert kept[: marker.start()] == b"\n"
    assert set(kept[marker.end() :]) == {0}
    assert int(marker[1]) + len(kept) - marker.end() == 10_000


def test_a_line_that_is_longer_than_the_room_is_dropped_to_its_end() -> None:
    waiting = DropOldestBytes(2 * KIB)
    waiting.add(b"b" * 5000 + b"\nshort\n")
    kept = everything(waiting)
    marker = MARKER.match(kept)
    assert marker is not None
    assert (int(marker[1]), int(marker[2]), kept[marker.end() :]) == (5001, 1, b"short\n")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "add", "add", "take"]), st.integers(1, 700)), max_size=120))
def test_every_byte_is_kept_or_told_of(steps: list[tuple[str, int]]) -> None:
    waiting = DropOldestBytes(2 * KIB)
    given_, seen = 0, []
    for what, number in steps:
        if what == "add":
            data = (b"%d " % number) * number + b"\n" * (number % 3)
            waiting.add(data)
            given_ += len(data)
        else:
            seen.append(waiting.take())
        assert waiting.size <= 2 * KIB
    seen.append(everything(waiting))
    output = b"".join(seen)
    told = sum(int(size) for size, _ in MARKER.findall(output))
    plain = MARKER.sub(b"", output)
    # A marker in the middle of a line begins a line of its own.
    added = len(MARKER.findall(output))
    assert 0 <= len(plain) + told - given_ <= added
    for match in MARKER.finditer(output):
        assert match.start() == 0 or output[match.start() - 1 : match.start()] == b"\n"
