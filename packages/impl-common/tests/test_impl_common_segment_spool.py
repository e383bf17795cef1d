"""What a later process finds of a source that cannot be read again, and of the upload that was under way."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace_common_api import ConfigurationError, IntegrityError, InvalidArgument
from tailrace_impl_common import BLOCK_SIZE, SavedUpload, UploadStateFile, head_of
from tailrace_impl_common._segment_spool import MIN_SPOOL_BYTES, SegmentSpool

MIB = 1024 * 1024
SAVED = SavedUpload(urls=("grpc://a:1", "ws://b:2"), source="-", key="k" * 32)


def opened(folder: Path, max_bytes: int = MIN_SPOOL_BYTES) -> SegmentSpool:
    spool = SegmentSpool(folder / "spool", max_bytes)
    spool.open()
    return spool


def rest(spool: SegmentSpool) -> bytes:
    taken = []
    while spool.size:
        taken.append(spool.take())
    return b"".join(taken)


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "spool").iterdir())


def test_another_process_finds_what_was_added(tmp_path: Path) -> None:
    data = os.urandom(700_000)
    first = opened(tmp_path)
    assert (first.start, first.end, first.size, first.take()) == (0, 0, 0, b"")
    for start in range(0, len(data), 99_999):
        first.add(data[start : start + 99_999])
    first.take()
    # It is never closed: its process was killed.
    second = opened(tmp_path)
    assert (second.start, second.end, second.head) == (0, len(data), head_of(data))
    assert rest(second) == data
    second.add(b"more")
    third = opened(tmp_path)
    assert (third.head, rest(third)) == (head_of(data + b"more"), data + b"more")
    for spool in (first, second, third):
        spool.close()


def test_what_is_announced_is_dropped_and_hash_states_stay(tmp_path: Path) -> None:
    data = os.urandom(6 * BLOCK_SIZE + 1000)
    spool = opened(tmp_path)
    spool.add(data)
    assert len(segments(tmp_path)) == 7
    for offset in (0, 1, BLOCK_SIZE, 3 * BLOCK_SIZE - 1, len(data)):
        state = spool.state_at(offset)
        assert state is not None
        assert (state.size, state.head()) == (offset, head_of(data[:offset]))
    # What was not even taken is kept, whatever is announced.
    spool.announced(len(data))
    assert spool.start == 0
    spool.seek(4 * BLOCK_SIZE + 5)
    spool.announced(4 * BLOCK_SIZE + 5)
    assert (spool.start, len(segments(tmp_path))) == (4 * BLOCK_SIZE, 3)
    again = opened(tmp_path)
    assert (again.start, again.end, again.head) == (4 * BLOCK_SIZE, len(data), head_of(data))
    assert again.state_at(4 * BLOCK_SIZE - 1) is None
    assert again.samples() == [(number * BLOCK_SIZE, head_of(data[: number * BLOCK_SIZE])) for number in (4, 5, 6)]
    assert rest(again) == data[4 * BLOCK_SIZE :]
    with pytest.raises(ValueError, match="not within"):
        again.seek(0)
    spool.close()
    again.remove()
    again.remove()
    assert not (tmp_path / "spool").exists()


def test_a_spool_is_bounded(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    piece = bytes(BLOCK_SIZE)
    count = 0
    while spool.fits(len(piece)):
        spool.add(piece)
        count += 1
    assert count == MIN_SPOOL_BYTES // BLOCK_SIZE
    spool.take()
    spool.announced(BLOCK_SIZE)
    assert spool.fits(len(piece))
    assert sum(path.stat().st_size for path in segments(tmp_path)) < MIN_SPOOL_BYTES + 1000
    spool.close()
    with pytest.raises(InvalidArgument):
        SegmentSpool(tmp_path, MIN_SPOOL_BYTES - 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200_000)), max_size=25))
def test_a_spool_goes_on_after_every_death(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("deaths")
    spool = opened(folder)
    data, taken = b"", 0
    for what, number in steps:
        if what == 0 and spool.fits(number):
            data += number.to_bytes(4, "big") * (number // 4)
            spool.add(number.to_bytes(4, "big") * (number // 4))
        elif what == 1:
            taken += len(spool.take())
            spool.announced(taken)
        elif what == 2:
            spool.close()
            spool = opened(folder)
            spool.seek(taken)
        else:
            offset = min(max(spool.start, taken - number), spool.end)
            spool.seek(offset)
            taken = offset
    assert rest(spool) == data[taken:]
    state = spool.state_at(len(data))
    assert state is not None
    assert state.head() == head_of(data)
    spool.close()


@pytest.mark.parametrize("place", [3, 20, 35, 41, 1000])
def test_a_damaged_segment_is_found(tmp_path: Path, place: int) -> None:
    spool = opened(tmp_path)
    spool.add(os.urandom(3 * BLOCK_SIZE))
    spool.close()
    victim = segments(tmp_path)[1]
    content = bytearray(victim.read_bytes())
    content[place] ^= 1
    victim.write_bytes(content)
    with pytest.raises(IntegrityError):
        opened(tmp_path)


def test_a_missing_segment_is_found_and_a_half_made_one_is_none(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.add(os.urandom(3 * BLOCK_SIZE))
    spool.close()
    half = tmp_path / "spool" / f"{3 * BLOCK_SIZE:020d}"
    half.write_bytes(b"TRSPO")
    assert opened(tmp_path).end == 3 * BLOCK_SIZE
    assert not half.exists()
    segments(tmp_path)[1].unlink()
    with pytest.raises(IntegrityError, match="does not follow"):
        opened(tmp_path)


def test_a_state_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    file = UploadStateFile(tmp_path / "state")
    assert file.load() is None
    file.save(SAVED)
    assert UploadStateFile(tmp_path / "state").load() == SAVED
    complete = replace(SAVED, id="1", token="secret", reference="grpc://a:1/r/1", ended=True)
    file.save(complete)
    assert file.load() == complete
    assert stat.S_IMODE(os.stat(tmp_path / "state").st_mode) == 0o600
    assert os.listdir(tmp_path) == ["state"]
    assert "secret" not in repr(complete)
    file.remove()
    file.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("change", [lambda text: text[:50], lambda text: text.replace(b'"-"', b'"+"'), lambda _: b"[]"])
def test_a_damaged_state_is_found(tmp_path: Path, change: object) -> None:
    assert callable(change)
    file = UploadStateFile(tmp_path / "state")
    file.save(SAVED)
    file.path.write_bytes(change(file.path.read_bytes()))
    with pytest.raises(IntegrityError, match="damaged"):
        file.load()


def test_a_state_of_a_later_version_is_refused(tmp_path: Path) -> None:
    file = UploadStateFile(tmp_path / "state")
    file.save(SAVED)
    file.path.write_bytes(file.path.read_bytes().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(IntegrityError, match="format 2"):
        file.load()


def test_a_second_process_is_kept_out_until_the_first_one_dies(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom tailrace_impl_common import UploadStateFile\n"
        "UploadStateFile(sys.argv[1]).acquire()\nprint('locked', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "state"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        file = UploadStateFile(tmp_path / "state")
        with pytest.raises(ConfigurationError, match="another process"):
            file.acquire()
        other.kill()
        other.wait()
        file.acquire()
        file.acquire()
    with pytest.raises(ConfigurationError, match="another process"):
        UploadStateFile(tmp_path / "state").acquire()
    file.release()
    file.release()
    assert os.listdir(tmp_path) == []
