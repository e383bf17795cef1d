"""A recorder of what a storage asks of the filesystem, and the disks that a loss of power may leave of it.

What is recorded is a model of the disk: files and folders as nodes, and calls that change them. A change of a file is
certain to be on disk once the file was synced after it, a name once its folder was. Of everything else any part may be
there: each call or none of it, and of a write each sector by itself.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""


@dataclass(frozen=True, slots=True)
class Make:
    """A file or a folder came into being."""

    parent: int
    name: str
    node: int
    folder: bool


@dataclass(frozen=True, slots=True)
class Move:
    """A name went to another place, over what was there."""

    source: int
    source_name: str
    parent: int
    name: str
    node: int


@dataclass(frozen=True, slots=True)
class Remove:
    """A name went away."""

    parent: int
    name: str


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes were written."""

    node: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A file got another length."""

    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """A file, or the names in a folder, are on disk."""

    node: int


@dataclass(frozen=True, slots=True)
class Told:
    """Something was told to the world, or begun; nothing that the disk knows of."""

    what: Any


Change = Make | Move | Remove | Write | Cut
Event = Change | Sync | Told


class Recorder:
    """Notes calls below one folder, in the order in which they took effect."""

    def __init__(self, root: Path, *, syncing: bool = True) -> None:
        """Record below ``root``, which exists; without ``syncing`` syncs do nothing, as on a disk that lies."""
        self._root = root
        self._syncing = syncing
        self._lock = threading.RLock()
        self._nodes = {str(root): 0}
        self._descriptors: dict[int, int] = {}
        self._next = 1
        self.events: list[Event] = []

    def tell(self, what: object) -> None:
        """Note that something is told, or begins, at this point."""
        with self._lock:
            self.events.append(Told(what))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the recorder between the storage and the system."""
        for name in ("open", "mkdir", "rename", "replace", "unlink", "pwrite", "pwritev", "ftruncate"):
            monkeypatch.setattr(os, name, self._around(getattr(os, name), getattr(self, f"_{name}")))
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._around(_nothing, self._sync))
        monkeypatch.setattr(shutil, "rmtree", self._around(shutil.rmtree, self._rmtree))

    def _around(self, real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                result = real(*args, **kwargs)
                note(result, *args)
                return result

        return call

    def _place(self, path: Any) -> tuple[int, str] | None:
        """Return the folder and the name of a path below the root."""
        folder, name = os.path.split(os.fspath(path))
        node = self._nodes.get(folder)
        return None if node is None else (node, name)

    def _made(self, path: Any, *, folder: bool) -> None:
        if (place := self._place(path)) is not None and str(path) not in self._nodes:
            self._nodes[str(path)] = self._next
            self.events.append(Make(*place, self._next, folder))
            self._next += 1

    def _open(self, fd: int, path: Any, flags: int = 0, *_: Any) -> None:
        if flags & os.O_CREAT:
            self._made(path, folder=False)
        self._descriptors.pop(fd, None)
        if (node := self._nodes.get(str(path))) is not None:
            self._descriptors[fd] = node

    def _mkdir(self, _: None, path: Any, *__: Any) -> None:
        self._made(path, folder=True)

    def _rename(self, _: None, source: Any, target: Any) -> None:
        before, after = self._place(source), self._place(target)
        if before is None or after is None:
            return
        moved = {name: node for name, node in self._nodes.items() if (name + "/").startswith(f"{source}/")}
        for name, node in moved.items():
            del self._nodes[name]
            self._nodes[str(target) + name[len(str(source)) :]] = node
        self.events.append(Move(*before, *after, self._nodes[str(target)]))

    _replace = _rename

    def _unlink(self, _: None, path: Any, *__: Any) -> None:
        if (place := self._place(path)) is not None and self._nodes.pop(str(path), None) is not None:
            self.events.append(Remove(*place))

    def _rmtree(self, _: None, path: Any, *__: Any) -> None:
        for name in sorted((name for name in self._nodes if (name + "/").startswith(f"{path}/")), reverse=True):
            self._unlink(None, name)

    def _pwrite(self, count: int, fd: int, data: bytes, offset: int) -> None:
        if (node := self._descriptors.get(fd)) is not None:
            self.events.append(Write(node, offset, bytes(data[:count])))

    def _pwritev(self, count: int, fd: int, buffers: list[bytes], offset: int) -> None:
        self._pwrite(count, fd, b"".join(buffers), offset)

    def _ftruncate(self, _: None, fd: int, size: int) -> None:
        if (node := self._descriptors.get(fd)) is not None:
            self.events.append(Cut(node, size))

    def _sync(self, _: None, fd: int) -> None:
        if self._syncing and (node := self._descriptors.get(fd)) is not None:
            self.events.append(Sync(node))


def _nothing(*_: object) -> None:
    """Sync nothing: the disk is a model, and the real one need not be waited for."""


@dataclass(slots=True)
class Disk:
    """Files and folders by node; 0 is the root."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    files: dict[int, bytearray] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        """Make a change, whether or not those before it were made."""
        match change:
            case Make():
                self.folders.setdefault(change.parent, {})[change.name] = change.node
                if change.folder:
                    self.folders.setdefault(change.node, {})
                else:
                    self.files.setdefault(change.node, bytearray())
            case Move():
                self.folders.setdefault(change.source, {}).pop(change.source_name, None)
                self.folders.setdefault(change.parent, {})[change.name] = change.node
            case Remove():
                self.folders.setdefault(change.parent, {}).pop(change.name, None)
            case Write():
                file = self.files.setdefault(change.node, bytearray())
                file.extend(bytes(max(0, change.offset - len(file))))
                file[change.offset : change.offset + len(change.data)] = change.data
            case Cut():
                file = self.files.setdefault(change.node, bytearray())
                del file[change.size :]
                file.extend(bytes(change.size - len(file)))

    def digest(self) -> bytes:
        """Return what tells disks apart by what can be reached."""
        seen = hashlib.sha256()
        for path, content in self._walk(0, ""):
            seen.update(f"{path}\0{-1 if content is None else len(content)}\0".encode() + (content or b""))
        return seen.digest()

    def write_to(self, root: Path) -> None:
        """Make a real folder of it."""
        for path, content in self._walk(0, ""):
            if content is None:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(content)

    def _walk(self, node: int, path: str) -> Iterator[tuple[str, bytes | None]]:
        for name, child in sorted(self.folders.get(node, {}).items()):
            below = f"{path}/{name}" if path else name
            if child in self.folders:
                yield below, None
                yield from self._walk(child, below)
            else:
                yield below, bytes(self.files.get(child, b""))


def disks_after_power_loss(
    events: list[Event], until: int, rng: random.Random, *, all_below: int, samples: int
) -> Iterator[Disk]:
    """Yield what a loss of power behind the first ``until`` events may leave.

    Args:
        events: What was recorded.
        until: Where the power is lost.
        rng: Chooses where there are too many possibilities.
        all_below: All subsets of up to so many uncertain changes are yielded, and
        samples: so many of more; with nothing and with everything of it besides.
    """
    synced: dict[int, int] = {}
    for number, event in enumerate(events[:until]):
        if isinstance(event, Sync):
            synced[event.node] = number
    changes: list[tuple[Change, int | None]] = []
    uncertain = 0
    for number, event in enumerate(events[:until]):
        if isinstance(event, Sync | Told):
            continue
        node = event.node if isinstance(event, Write | Cut) else event.parent
        if synced.get(node, -1) > number:
            changes.append((event, None))
            continue
        for part in _sectors(event) if isinstance(event, Write) else [event]:
            changes.append((part, uncertain))
            uncertain += 1
    choices: Iterator[tuple[bool, ...]]
    choices = product((False, True), repeat=uncertain) if uncertain <= all_below else _some(uncertain, rng, samples)
    for choice in choices:
        disk = Disk()
        for change, place in changes:
            if place is None or choice[place]:
                disk.apply(change)
            elif isinstance(change, Make) and change.folder:
                # Its name is lost; what it is, is not: it may yet be moved to a name that is kept.
                disk.folders.setdefault(change.node, {})
        yield disk


def _some(count: int, rng: random.Random, samples: int) -> Iterator[tuple[bool, ...]]:
    yield (False,) * count
    yield (True,) * count
    for _ in range(samples):
        share = rng.choice((0.1, 0.5, 0.9))
        yield tuple(rng.random() < share for _ in range(count))


def _sectors(write: Write) -> Iterator[Write]:
    start = write.offset
    end = start + len(write.data)
    while start < end:
        border = min(start - start % SECTOR + SECTOR, end)
        yield Write(write.node, start, write.data[start - write.offset : border - write.offset])
        start = border
