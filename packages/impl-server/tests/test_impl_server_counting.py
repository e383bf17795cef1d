"""When newlines are counted faster: not for little, once, and with the same result."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from impl_server_disk import committed, descriptor

from tailrace_impl_common import head_of
from tailrace_impl_server import _counting
from tailrace_impl_server._counting import CountedBlocks
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_server_api import Durability

PATIENCE = 30.0
LINES = b"a line\n" * 150_000


class Accelerator:
    """Notes how often it is loaded, and where."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.loaded = threading.Event()

    def __call__(self) -> None:
        self.threads.append(threading.get_ident())
        self.loaded.set()


def test_it_is_loaded_once_in_a_thread_of_its_own_when_much_was_counted() -> None:
    accelerator = Accelerator()
    counted = CountedBlocks(accelerator)
    counted.note(_counting._MUCH - 1)
    assert counted._thread is None
    for _ in range(3):
        counted.note(1)
    assert accelerator.loaded.wait(PATIENCE)
    counted.close(PATIENCE)
    assert len(accelerator.threads) == 1
    assert accelerator.threads[0] != threading.get_ident()


def test_where_no_thread_can_be_started_counting_goes_on_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator()
    counted = CountedBlocks(accelerator)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", refuse)
        counted.note(_counting._MUCH)
    counted.close(PATIENCE)
    counted.note(_counting._MUCH)
    assert accelerator.loaded.wait(PATIENCE)
    counted.close(PATIENCE)


def test_closing_does_not_wait_for_ever() -> None:
    gate = threading.Event()
    counted = CountedBlocks(lambda: gate.wait(PATIENCE))
    counted.note(_counting._MUCH)
    counted.close(0.01)
    thread = counted._thread
    assert thread is not None
    assert thread.is_alive()
    gate.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_closing_what_has_counted_little_does_nothing() -> None:
    CountedBlocks(pytest.fail).close(PATIENCE)


def test_a_server_starts_without_it() -> None:
    program = "import sys, tailrace_impl_server; print('numpy' in sys.modules)"
    started = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
    assert started.stdout == "False\n"


@pytest.mark.parametrize("durability", list(Durability))
async def test_a_storage_counts_the_same_before_and_after(
    tmp_path: Path, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_counting, "_MUCH", 10)
    storage = FilesystemStorage(tmp_path / "storage", durability=durability)
    await storage.start()
    outcomes = []
    for number in range(2):
        await storage.create(descriptor(str(number) * 32))
        writer = await storage.open(str(number) * 32)
        for _ in range(4):
            writer.append(LINES)
        outcomes.append(committed(await writer.complete()))
        await writer.close()
        assert storage._counted._thread is not None
        await asyncio.to_thread(storage._counted.close, PATIENCE)
    await storage.close()
    assert [outcome.newlines for outcome in outcomes] == [4 * 150_000] * 2
    assert [outcome.head for outcome in outcomes] == [head_of(LINES * 4)] * 2


async def test_what_needs_no_lines_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_counting, "_MUCH", 1)
    storage = FilesystemStorage(tmp_path / "storage", durability=Durability.OS)
    await storage.start()
    await storage.create(descriptor("0" * 32, lines=False))
    writer = await storage.open("0" * 32)
    writer.append(LINES)
    await writer.complete()
    await writer.close()
    assert storage._counted._thread is None
    await storage.close()
