import asyncio
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tailrace_common_api import InvalidArgument, SourceChanged
from tailrace_impl_common import _growing_file
from tailrace_impl_common._growing_file import GrowingFile, RotationPolicy, SourceRestarted, find_watcher
from tailrace_impl_common._process_exit import ProcessExit

POLL = 0.005
Pieces = AsyncGenerator[bytes | SourceRestarted, None]

# Notification is tried where it is installed; without it the file is asked for.
NOTIFY = [pytest.param(False, id="polling")]
NOTIFY += [pytest.param(True, id="notified")] if find_watcher() else []


def grow(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


async def rest(pieces: Pieces) -> bytes:
    """Return what is left, which must hold no restart."""
    got = b""
    async for piece in pieces:
        assert isinstance(piece, bytes)
        got += piece
    return got


async def take(pieces: Pieces, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = await anext(pieces)
        assert isinstance(piece, bytes)
        got += piece
    return got


def open_descriptors(path: Path) -> int:
    """Return how many descriptors of this process are open on files of this name, renamed and removed ones included."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # The descriptor of the listing itself.
            continue
    return sum(link.startswith(str(path)) for link in links)


@pytest.mark.parametrize("notify", NOTIFY)
async def test_a_file_is_followed_from_before_it_exists_to_its_last_byte(tmp_path: Path, notify: bool) -> None:
    path = tmp_path / "later" / "build.log"
    file = GrowingFile(path, poll_interval=POLL, notify=notify)
    async with aclosing(file.pieces()) as pieces:
        first = asyncio.create_task(take(pieces, 6))
        path.parent.mkdir()
        grow(path, b"first\n")
        assert await first == b"first\n"
        for part in (b"second\n", b"no newline"):
            more = asyncio.create_task(take(pieces, len(part)))
            grow(path, part)
            assert await more == part
        grow(path, b" and the end")
        file.stop()
        file.stop()
        assert await rest(pieces) == b" and the end"
    assert open_descriptors(path) == 0


@pytest.mark.skipif(find_watcher() is None, reason="the extra 'watch' is not installed")
async def test_notification_wakes_a_source_that_would_not_look_for_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"")
    monkeypatch.setattr(_growing_file, "_SAFETY_INTERVAL", 3600.0)
    watched = asyncio.Event()
    watcher = find_watcher()
    assert watcher is not None

    async def telling(path: Path, on_change: Callable[[], None]) -> None:
        def told() -> None:
            watched.set()
            on_change()

        await watcher(path, told)

    monkeypatch.setattr(_growing_file, "find_watcher", lambda: telling)
    file = GrowingFile(path, poll_interval=3600.0)
    async with aclosing(file.pieces()) as pieces:
        waiting = asyncio.create_task(take(pieces, 1))
        # When the watch begins is not told, so bytes are added until it reports one.
        while not watched.is_set():
            grow(path, b".")
            await asyncio.wait([waiting], timeout=0.02)
        assert (await waiting).startswith(b".")
        file.stop()
        await rest(pieces)
    assert path.stat().st_size > 0


async def test_without_the_extra_there_is_no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_watcher() is None


async def test_a_watcher_that_fails_leaves_polling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(path: Path, on_change: Callable[[], None]) -> None:
        raise OSError(28, "no watches left")

    monkeypatch.setattr(_growing_file, "find_watcher", lambda: failing)
    path = tmp_path / "log"
    file = GrowingFile(path, poll_interval=POLL)
    async with aclosing(file.pieces()) as pieces:
        waiting = asyncio.create_task(take(pieces, 3))
        grow(path, b"abc")
        assert await waiting == b"abc"
        file.stop()
        assert await rest(pieces) == b""


async def test_pieces_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(range(100)))
    file = GrowingFile(path, chunk_size=7, poll_interval=POLL, notify=False)
    file.stop()
    pieces = [piece async for piece in file]
    assert all(isinstance(piece, bytes) and 0 < len(piece) <= 7 for piece in pieces)
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == bytes(range(100))


async def test_a_writer_that_goes_on_does_not_hold_up_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 50)
    file = GrowingFile(path, chunk_size=10, poll_interval=POLL, notify=False)
    file.stop()
    got = 0
    async for piece in file:
        assert isinstance(piece, bytes)
        got += len(piece)
        grow(path, b"more than was read")
    assert got == 50


async def test_a_file_that_never_comes_gives_nothing(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "never", poll_interval=POLL, notify=False)
    waiting = asyncio.create_task(rest(file.pieces()))
    await asyncio.sleep(0)
    file.stop()
    assert await waiting == b""


async def test_the_source_ends_when_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"abc")
    asked = 0

    def until() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            # The loop calls it before the next look: it is written before the end, so it belongs to the source.
            asyncio.get_running_loop().call_soon(grow, path, b"def")
        return asked >= 4

    assert await rest(GrowingFile(path, poll_interval=POLL, until=until, notify=False).pieces()) == b"abcdef"


async def test_what_was_written_just_before_the_end_belongs_to_the_source(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"abc")
    asked = 0

    def until() -> bool:
        nonlocal asked
        asked += 1
        if asked == 4:
            writer = threading.Thread(target=grow, args=(path, b"def"))
            writer.start()
            while writer.is_alive():  # Joining would be a blocking call on the loop, which is an error in every test.
                pass
        return asked >= 4

    assert await rest(GrowingFile(path, poll_interval=POLL, until=until, notify=False).pieces()) == b"abcdef"


async def spawn(path: Path) -> asyncio.subprocess.Process:
    """Start a process that appends each line it is sent to a file, and ends with its input."""
    code = "import sys\nfor line in sys.stdin.buffer:\n    open(sys.argv[1], 'ab').write(line)"
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    return await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE)


@pytest.mark.parametrize("notifies", [True, False])
async def test_the_end_of_a_process_ends_the_source(
    tmp_path: Path, notifies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    # Before the system is made to refuse: asyncio watches its own processes in the same way.
    process = await spawn(path)
    assert process.stdin is not None
    if not notifies:

        def refused(pid: int, flags: int = 0) -> int:
            raise PermissionError(1, "not here")

        monkeypatch.setattr(os, "pidfd_open", refused, raising=False)
    file = GrowingFile(path, poll_interval=POLL, until_exit=process.pid, notify=False)
    async with aclosing(file.pieces()) as pieces:
        process.stdin.write(b"one\n")
        assert await take(pieces, 4) == b"one\n"
        process.stdin.write(b"two\nthree\n")
        process.stdin.close()
        assert await rest(pieces) == b"two\nthree\n"
    assert await process.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a process that nobody has waited for")
async def test_a_process_that_nobody_waited_for_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    process = subprocess.Popen([sys.executable, "-c", "pass"])  # noqa: ASYNC220 - waited for below, on purpose late
    try:
        path.write_bytes(b"all")
        assert await rest(GrowingFile(path, poll_interval=POLL, until_exit=process.pid).pieces()) == b"all"
    finally:
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the end of any process")
async def test_the_end_of_a_process_is_told(tmp_path: Path) -> None:
    process = await spawn(tmp_path / "log")
    assert process.stdin is not None
    told = asyncio.Event()
    watched = ProcessExit(process.pid, told.set)
    assert watched.notifies
    assert not watched.ended()
    process.stdin.close()
    await told.wait()
    assert watched.ended()
    watched.close()
    await process.wait()


async def test_a_process_that_does_not_exist_has_ended() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    await process.wait()
    calls: list[None] = []
    exit_ = ProcessExit(process.pid, lambda: calls.append(None))
    assert exit_.ended()
    exit_.close()
    alive = ProcessExit(os.getpid(), lambda: calls.append(None))
    assert not alive.ended()
    alive.close()
    alive.close()
    assert calls == []


def rename_and_write(path: Path, data: bytes) -> None:
    path.rename(path.with_name("log.1"))
    path.write_bytes(data)


def replace(path: Path, data: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(data)
    new.rename(path)


def truncate(path: Path, data: bytes) -> None:
    os.truncate(path, 0)
    grow(path, data)


def remove_and_write(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def truncate_and_outgrow(path: Path, data: bytes) -> None:
    """Truncate, and be longer than before when the next look comes."""
    path.write_bytes(data + b"x" * 100)


CHANGES: dict[str, Callable[[Path, bytes], None]] = {
    "rotated": rename_and_write,
    "replaced": replace,
    "truncated": truncate,
    "removed and written": remove_and_write,
    "truncated and outgrown": truncate_and_outgrow,
}
REASONS = {
    "truncated": "was truncated",
    "truncated and outgrown": "was truncated",
    "rotated": "was replaced",
    "replaced": "was replaced",
    "removed and written": "was replaced",
}


async def changed(path: Path, change: str, **options: Any) -> tuple[GrowingFile, Pieces]:
    """Return a source that has read all of a file which has been changed since."""
    path.write_bytes(b"old content\n")
    file = GrowingFile(path, poll_interval=POLL, **options)
    pieces = file.pieces()
    assert await take(pieces, 12) == b"old content\n"
    # The reader stands at its last byte and looks no further until it is asked for more.
    CHANGES[change](path, b"new\n")
    return file, pieces


@pytest.mark.parametrize("notify", NOTIFY)
@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_file_is_an_error_by_default(tmp_path: Path, change: str, notify: bool) -> None:
    path = tmp_path / "log"
    _, pieces = await changed(path, change, notify=notify)
    with pytest.raises(SourceChanged, match=REASONS[change]) as caught:
        await anext(pieces)
    assert "after 12 bytes" in str(caught.value)
    assert open_descriptors(tmp_path) == 0


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_file_restarts_the_source(tmp_path: Path, change: str) -> None:
    path = tmp_path / "log"
    file, pieces = await changed(path, change, rotation=RotationPolicy.RESTART, notify=False)
    restarted = await anext(pieces)
    assert isinstance(restarted, SourceRestarted)
    assert REASONS[change] in restarted.reason
    new = path.read_bytes()
    assert await take(pieces, len(new)) == new
    grow(path, b"more")
    file.stop()
    assert await rest(pieces) == b"more"


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_file_continues_by_name(tmp_path: Path, change: str) -> None:
    path = tmp_path / "log"
    file, pieces = await changed(path, change, rotation=RotationPolicy.CONTINUE, notify=False)
    grow(path, b"more")
    new = path.read_bytes()
    assert await take(pieces, len(new)) == new
    file.stop()
    assert await rest(pieces) == b""


@pytest.mark.parametrize("rotation", [RotationPolicy.RESTART, RotationPolicy.CONTINUE])
async def test_a_rotated_file_is_read_to_its_end_first(tmp_path: Path, rotation: RotationPolicy) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"head ")
    file = GrowingFile(path, poll_interval=POLL, rotation=rotation, chunk_size=5, notify=False)
    pieces = file.pieces()
    assert await take(pieces, 5) == b"head "
    grow(path, b"of the old file ")
    rename_and_write(path, b"the new file")
    assert await take(pieces, 16) == b"of the old file "
    if rotation is RotationPolicy.RESTART:
        assert isinstance(await anext(pieces), SourceRestarted)
    # The end comes while the new file is unread: it is part of the source all the same.
    file.stop()
    assert await rest(pieces) == b"the new file"


async def test_a_writer_that_goes_over_between_read_and_look_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"head ")
    file = GrowingFile(path, poll_interval=POLL, rotation=RotationPolicy.CONTINUE, notify=False)
    pieces = file.pieces()
    assert await take(pieces, 5) == b"head "
    stat = os.stat

    def racing(looked_at: Any, **options: Any) -> os.stat_result:
        # The reader has seen the end of the file and asks for its name: the writer is that much faster.
        if looked_at == path and not path.with_name("log.1").exists():
            grow(path, b"last words ")
            rename_and_write(path, b"new")
        return stat(looked_at, **options)

    monkeypatch.setattr(os, "stat", racing)
    assert await take(pieces, 14) == b"last words new"
    file.stop()
    assert await rest(pieces) == b""


async def test_a_removed_file_is_an_error_by_default(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"abc")
    pieces = GrowingFile(path, poll_interval=POLL, notify=False).pieces()
    assert await take(pieces, 3) == b"abc"
    grow(path, b"def")
    path.unlink()
    assert await take(pieces, 3) == b"def"
    with pytest.raises(SourceChanged, match="was removed") as caught:
        await anext(pieces)
    assert caught.value.offset == 6


async def test_a_removed_file_that_was_told_to_end_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"abc")
    file = GrowingFile(path, poll_interval=POLL, notify=False)
    pieces = file.pieces()
    assert await take(pieces, 3) == b"abc"
    grow(path, b"def")
    path.unlink()
    file.stop()
    assert await rest(pieces) == b"def"


async def test_a_removed_file_is_waited_for_under_the_other_policies(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"abc")
    looks = 0

    def until() -> bool:
        nonlocal looks
        looks += 1
        if looks == 5:  # It was seen to be missing several times by now.
            asyncio.get_running_loop().call_soon(path.write_bytes, b"again")
        return looks >= 7

    file = GrowingFile(path, poll_interval=POLL, rotation=RotationPolicy.CONTINUE, until=until, notify=False)
    pieces = file.pieces()
    assert await take(pieces, 3) == b"abc"
    path.unlink()
    assert await rest(pieces) == b"again"


async def test_cancelling_and_closing_leave_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"abc")
    file = GrowingFile(path, poll_interval=POLL)
    pieces = file.pieces()
    assert await take(pieces, 3) == b"abc"
    waiting = asyncio.create_task(anext(pieces))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    # A look may be under way in its thread; closing is its last act.
    while open_descriptors(path):
        await asyncio.to_thread(lambda: None)
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)

    pieces = GrowingFile(path, poll_interval=POLL).pieces()
    assert await take(pieces, 3) == b"abc"
    await pieces.aclose()
    assert open_descriptors(path) == 0


@pytest.mark.parametrize("notify", NOTIFY)
async def test_a_symbolic_link_is_followed(tmp_path: Path, notify: bool) -> None:
    target = tmp_path / "elsewhere" / "log.2024"
    target.parent.mkdir()
    target.write_bytes(b"abc")
    link = tmp_path / "current.log"
    link.symlink_to(target)
    file = GrowingFile(link, poll_interval=POLL, notify=notify, rotation=RotationPolicy.CONTINUE)
    pieces = file.pieces()
    assert await take(pieces, 3) == b"abc"
    waiting = asyncio.create_task(take(pieces, 3))
    grow(target, b"def")
    assert await waiting == b"def"
    following = tmp_path / "elsewhere" / "log.2025"
    following.write_bytes(b"next")
    link.unlink()
    link.symlink_to(following)
    file.stop()
    assert await rest(pieces) == b"next"


async def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no regular file"):
        await rest(GrowingFile(tmp_path, notify=False).pieces())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgument, match="no regular file"):
        await rest(GrowingFile(tmp_path / "pipe", notify=False).pieces())


@pytest.mark.parametrize("wrong", [{"chunk_size": 0}, {"poll_interval": 0}, {"until_exit": 0}, {"until_exit": -5}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        GrowingFile("log", **wrong)
