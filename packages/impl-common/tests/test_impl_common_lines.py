import itertools
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import InvalidArgument, LineRangeNotSatisfiable
from tailrace_impl_common import _lines
from tailrace_impl_common._buffers import Buffer
from tailrace_impl_common._head import BLOCK_SIZE, BlockDigest, HeadHasher
from tailrace_impl_common._lines import (
    accelerate_counting,
    count_newlines,
    find_newline,
    last_lines,
    line_count,
    newline_counter,
    resolve_lines,
)

KINDS: list[Callable[[bytes], Buffer]] = [bytes, bytearray, memoryview]


@contextmanager
def counting(*, by_numpy: bool) -> Iterator[None]:
    """Count by numpy, or as where it is not installed."""
    before = _lines._counter_of_large
    _lines._counter_of_large = None
    try:
        if by_numpy:
            assert accelerate_counting()
        yield
    finally:
        _lines._counter_of_large = before


@pytest.fixture(scope="module", autouse=True)
def numpy_is_loaded() -> None:
    """Importing it takes longer than an example may."""
    pytest.importorskip("numpy")


@pytest.fixture(params=[False, True], ids=["plain", "numpy"])
def by_numpy(request: pytest.FixtureRequest) -> bool:
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
    by_numpy=st.booleans(),
)
def test_counting_agrees_with_the_naive_way(
    data: bytes, bounds: tuple[int, int], kind: Callable[[bytes], Buffer], by_numpy: bool
) -> None:
    start, end = (bound % (len(data) + 1) for bound in bounds)
    with counting(by_numpy=by_numpy):
        assert count_newlines(kind(data)) == data.count(b"\n")
        assert count_newlines(kind(data), start, end) == data[start:end].count(b"\n")


@given(
    pattern=st.binary(min_size=1) | st.text("\n\x0b ").map(lambda text: text.encode() + b"\n"),
    size=st.integers(_lines._LARGE - 1, 3 * _lines._LARGE),
    kind=st.sampled_from(KINDS),
)
def test_any_bytes_are_counted_alike_by_both_ways(pattern: bytes, size: int, kind: Callable[[bytes], Buffer]) -> None:
    data = (pattern * (size // len(pattern) + 1))[:size]
    with counting(by_numpy=False):
        plain = count_newlines(kind(data))
    with counting(by_numpy=True):
        assert count_newlines(kind(data)) == plain


def test_numpy_counts_what_is_large_and_nothing_else() -> None:
    counted: list[tuple[int, int]] = []
    with counting(by_numpy=True):
        by_numpy = _lines._counter_of_large
        assert by_numpy is not None

        def counter_of(buffer: Buffer | mmap.mmap, start: int, end: int) -> Callable[[int, int], int]:
            counted.append((start, end))
            return by_numpy(buffer, start, end)

        _lines._counter_of_large = counter_of
        large = b"\n" * _lines._LARGE
        assert count_newlines(large) == newline_counter(large)(0, len(large)) == _lines._LARGE
        assert count_newlines(large, 1) == newline_counter(large[1:])(0, len(large) - 1) == _lines._LARGE - 1
        assert accelerate_counting()
        assert _lines._counter_of_large is counter_of
    assert counted == [(0, _lines._LARGE)] * 2


@given(
    data=blocks(),
    cuts=st.lists(st.integers(0, 2**19), max_size=5),
    kind=st.sampled_from(KINDS),
    by_numpy=st.booleans(),
)
def test_parts_of_one_buffer_are_counted_as_each_is_alone(
    data: bytes, cuts: list[int], kind: Callable[[bytes], Buffer], by_numpy: bool
) -> None:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    with counting(by_numpy=by_numpy):
        count = newline_counter(kind(data))
    for start, end in itertools.pairwise(places):
        assert count(start, end) == data[start:end].count(b"\n")


@given(data=blocks(), cuts=st.lists(st.integers(0, 2**19), max_size=3), by_numpy=st.booleans())
def test_the_head_counts_alike_by_both_ways(data: bytes, cuts: list[int], by_numpy: bool) -> None:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    hasher = HeadHasher(count_newlines=True)
    records: list[BlockDigest] = []
    with counting(by_numpy=by_numpy):
        for start, end in itertools.pairwise(places):
            records.extend(hasher.update(data[start:end]))
    assert hasher.newlines == data.count(b"\n")
    assert [record.newlines for record in records] == [
        data.count(b"\n", 0, (number + 1) * BLOCK_SIZE) for number in range(len(data) // BLOCK_SIZE)
    ]


def test_a_buffer_can_change_its_size_once_it_is_counted() -> None:
    with counting(by_numpy=True):
        data = bytearray(b"a line\n" * 10_000)
        assert count_newlines(data) == 10_000
        # Refused while anything refers to its memory.
        data.clear()


def test_without_numpy_everything_is_counted_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with counting(by_numpy=False):
        assert not accelerate_counting()
        assert _lines._counter_of_large is None
        assert count_newlines(b"a line\n" * 50_000) == 50_000


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


def test_a_mapped_file_is_counted_in_place(tmp_path: Path, by_numpy: bool) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a line\n" * 50_000)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        counting(by_numpy=by_numpy),
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
