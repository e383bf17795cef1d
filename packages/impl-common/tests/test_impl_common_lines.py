import itertools
import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import InvalidArgument, LineRangeNotSatisfiable
from tailrace_impl_common import _lines
from tailrace_impl_common._blocks import BLOCK_SIZE
from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._head import BlockDigest, HeadHasher
from tailrace_impl_common._lines import (
    count_newlines,
    find_newline,
    last_lines,
    line_count,
    resolve_lines,
)

KINDS: list[Callable[[bytes], Buffer]] = [bytes, bytearray, memoryview]


@contextmanager
def counting(*, fast: bool) -> Iterator[None]:
    """Count by the library, or as where it is not installed."""
    before = _lines._count_large
    assert before is not None
    if not fast:
        _lines._count_large = None
    try:
        yield
    finally:
        _lines._count_large = before


@pytest.fixture(scope="module", autouse=True)
def library_is_installed() -> None:
    """Without it there is nothing to compare with."""
    pytest.importorskip("stringzilla")


@pytest.fixture(params=[False, True], ids=["plain", "fast"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    """Stretches of lines of different lengths, longer than the counting works through at once."""
    stretches = draw(st.lists(st.tuples(st.sampled_from([1, 2, 20, 100, 3000]), st.integers(0, 60_000)), max_size=6))
    return b"".join(((b"x" * (length - 1) + b"\n") * (size // length + 1))[:size] for length, size in stretches)


@given(
    data=blocks(),
    bounds=st.tuples(st.integers(0, 2**19), st.integers(0, 2**19)),
    kind=st.sampled_from(KINDS),
    fast=st.booleans(),
)
def test_counting_agrees_with_the_naive_way(
    data: bytes, bounds: tuple[int, int], kind: Callable[[bytes], Buffer], fast: bool
) -> None:
    start, end = (bound % (len(data) + 1) for bound in bounds)
    with counting(fast=fast):
        assert count_newlines(kind(data)) == data.count(b"\n")
        assert count_newlines(kind(data), start, end) == data[start:end].count(b"\n")


@given(
    pattern=st.binary(min_size=1) | st.text("\n\x0b ").map(lambda text: text.encode() + b"\n"),
    size=st.integers(_lines._LARGE - 1, 3 * _lines._LARGE),
    kind=st.sampled_from(KINDS),
)
def test_any_bytes_are_counted_alike_by_both_ways(pattern: bytes, size: int, kind: Callable[[bytes], Buffer]) -> None:
    data = (pattern * (size // len(pattern) + 1))[:size]
    with counting(fast=False):
        plain = count_newlines(kind(data))
    with counting(fast=True):
        assert count_newlines(kind(data)) == plain


def test_the_library_counts_what_is_large_in_pieces_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    count_large = _lines._count_large
    assert count_large is not None

    def count(piece: memoryview) -> int:
        counted.append(len(piece))
        return count_large(piece)

    monkeypatch.setattr(_lines, "_count_large", count)
    large, largest = _lines._LARGE, _lines._LARGEST
    data = b"\n" * (2 * largest + 5)
    for size in (0, 1, large - 1, large, largest, largest + 1, 2 * largest + 3):
        for start in (0, 1, 2):
            assert count_newlines(data, start, start + size) == size
    assert counted == 3 * [large] + 3 * [largest] + 3 * [largest, 1] + 3 * [largest, largest, 3]


@pytest.mark.parametrize("byte", range(256))
def test_the_library_counts_one_byte_of_all(byte: int, fast: bool) -> None:
    with counting(fast=fast):
        assert count_newlines(bytes([byte]) * _lines._LARGE) == (_lines._LARGE if byte == 0x0A else 0)


@given(data=blocks(), cuts=st.lists(st.integers(0, 2**19), max_size=3), fast=st.booleans())
def test_the_head_counts_alike_by_both_ways(data: bytes, cuts: list[int], fast: bool) -> None:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    hasher = HeadHasher(count_newlines=True)
    records: list[BlockDigest] = []
    with counting(fast=fast):
        for start, end in itertools.pairwise(places):
            records.extend(hasher.update(data[start:end]))
    assert hasher.newlines == data.count(b"\n")
    assert [record.newlines for record in records] == [
        data.count(b"\n", 0, (number + 1) * BLOCK_SIZE) for number in range(len(data) // BLOCK_SIZE)
    ]


def test_a_buffer_can_change_its_size_once_it_is_counted() -> None:
    with counting(fast=True):
        data = bytearray(b"a line\n" * 10_000)
        assert count_newlines(data) == 10_000
        # Refused while anything refers to its memory.
        data.clear()


def test_where_it_is_not_installed_everything_is_counted_as_before() -> None:
    program = """
import sys
sys.modules["stringzilla"] = None
from tailrace_impl_common import _lines
assert _lines._count_large is None
print(_lines.count_newlines(b"a line\\n" * 50_000))
"""
    counted = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert counted.stdout == "50000\n"


@given(
    data=blocks(),
    place=st.floats(0, 1),
    wanted=st.floats(0, 1) | st.integers(1, 200),
    kind=st.sampled_from(KINDS),
)
def test_finding_agrees_with_the_naive_way(
    data: bytes, place: float, wanted: float, kind: Callable[[bytes], Buffer]
) -> None:
    start = round(place * len(data))
    newlines = data.count(b"\n", start)
    # A share of all, or a few, which are found in another way.
    nth = min(wanted, newlines) if isinstance(wanted, int) else round(wanted * newlines)
    found = find_newline(kind(data), nth, start)
    assert data[start:found].count(b"\n") == nth
    assert found == start if nth == 0 else data[found - 1 : found] == b"\n"
    with pytest.raises(ValueError, match=f"has {newlines}$"):
        find_newline(kind(data), newlines + 1, start)


def test_line_starts_are_where_splitting_puts_them() -> None:
    data = b"\n\nab\r\n\nlong" + b"." * 2000 + b"\nlast"
    position = 0
    for number, line in enumerate(data.splitlines(keepends=True)):
        assert find_newline(data, number) == position
        position += len(line)
    with pytest.raises(ValueError, match="newline -1"):
        find_newline(data, -1)


def test_a_mapped_file_is_counted_in_place(tmp_path: Path, fast: bool) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a line\n" * 50_000)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        counting(fast=fast),
    ):
        assert count_newlines(mapped) == 50_000
        assert find_newline(mapped, 49_999) == 49_999 * 7


@pytest.mark.parametrize(
    ("data", "growing", "ended"),
    [(b"", 0, 0), (b"a", 0, 1), (b"\n", 1, 1), (b"a\n", 1, 1), (b"a\nb", 1, 2), (b"\n\n", 2, 2), (b"a\r\nb\r", 1, 2)],
)
def test_an_unterminated_last_line_counts_at_the_end_only(data: bytes, growing: int, ended: int) -> None:
    for terminal, expected in ((False, growing), (True, ended)):
        lines = line_count(data.count(b"\n"), len(data), ends_with_newline=data.endswith(b"\n"), terminal=terminal)
        assert lines == expected


@given(first=st.integers(0, 20), count=st.none() | st.integers(0, 30), lines=st.integers(0, 20))
def test_line_ranges_are_those_of_a_slice(first: int, count: int | None, lines: int) -> None:
    if first > lines:
        with pytest.raises(LineRangeNotSatisfiable) as caught:
            resolve_lines(first, count, lines)
        assert (caught.value.first, caught.value.count, caught.value.lines) == (first, count, lines)
        return
    resolved = range(*resolve_lines(first, count, lines))
    assert list(resolved) == list(range(lines))[first : None if count is None else first + count]


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (-1, None), (0, -1), (4, 0), (4, None)])
def test_line_ranges_outside_are_refused(first: int, count: int | None) -> None:
    with pytest.raises(LineRangeNotSatisfiable):
        resolve_lines(first, count, 3)


def test_the_end_itself_is_an_empty_range() -> None:
    assert resolve_lines(3, None, 3) == resolve_lines(3, 0, 3) == resolve_lines(3, 5, 3) == (3, 3)


def test_last_lines_are_all_when_there_are_fewer() -> None:
    assert last_lines(0, 5) == (5, 5)
    assert last_lines(2, 5) == (3, 5)
    assert last_lines(9, 5) == (0, 5)
    with pytest.raises(InvalidArgument):
        last_lines(-1, 5)
