"""Folders of the filesystem storage: how resources come into being and go, and who owns the whole. All of it blocks.

::

    format              what this folder is, and in which format
    lock                held by the server that uses the folder
    resources/ID/       one resource: data, journal, resource.json
    creating/ID/        a resource that is being made; it is renamed into place when it is whole
    trash/ID/           a deleted resource that is being removed
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path

from tailrace_common_api import ConfigurationError, NotFound, StorageFailure
from tailrace_impl_server._descriptor import descriptor_from_json, descriptor_to_json
from tailrace_impl_server._filesystem_files import DATA, DESCRIPTION, JOURNAL
from tailrace_impl_server._journal import RECORDS_OFFSET, Slot, pack_header, pack_slot, slot_offset
from tailrace_impl_server._positional_io import sync_folder, write_new_file
from tailrace_server_api import Descriptor

_FORMAT = "tailrace filesystem storage 1\n"
_NEW_DESCRIPTION = f"{DESCRIPTION}.new"
_ID = re.compile(r"[0-9a-v]{32}\Z")


class Layout:
    """Paths below one folder, and the lock on it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._resources = root / "resources"
        self._creating = root / "creating"
        self._trash = root / "trash"
        self._lock = -1

    def acquire(self) -> None:
        """Take the folder into use: make it if it is not there, lock it, empty the trash.

        Raises:
            ConfigurationError: Another server uses the folder, or it is of a format that is not understood.
            OSError: The folder cannot be made or written.
        """
        self._make_root()
        self._lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    field="data", problem=f"{self._root} is in use by another server; stop it or choose another folder"
                ) from None
            self._check_format()
            for folder in (self._resources, self._creating, self._trash):
                folder.mkdir(exist_ok=True)
            sync_folder(self._root)
            for name in os.listdir(self._trash):
                shutil.rmtree(self._trash / name)
        except BaseException:
            self.release()
            raise

    def _make_root(self) -> None:
        """Make the folder and those above it, and wait until their names are on disk."""
        missing = [self._root]
        while not missing[-1].exists() and missing[-1].parent != missing[-1]:
            missing.append(missing[-1].parent)
        self._root.mkdir(parents=True, exist_ok=True)
        for parent in missing[1:]:
            sync_folder(parent)

    def release(self) -> None:
        """Let another server use the folder; idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _check_format(self) -> None:
        file = self._root / "format"
        try:
            found = file.read_bytes()
        except FileNotFoundError:
            if self._resources.exists():
                raise ConfigurationError(
                    field="data", problem=f"{self._root} holds resources and no format file"
                ) from None
            # Renamed into place: a half-written format file must not keep the next start from working.
            new = self._root / "format.new"
            new.unlink(missing_ok=True)
            write_new_file(new, _FORMAT.encode())
            new.rename(file)
            # Before there is anything whose format it tells.
            sync_folder(self._root)
            return
        if found != _FORMAT.encode():
            raise ConfigurationError(
                field="data", problem=f"{self._root} is of format {found[:80]!a}; {_FORMAT.strip()!r} is understood"
            )

    def folder(self, id: str) -> Path:
        """Return the folder of a resource, which need not exist.

        Raises:
            NotFound: ``id`` has not the form of an id, so that nothing is stored under it.
        """
        if not _ID.match(id):
            raise NotFound(id=id)
        return self._resources / id

    def create(self, descriptor: Descriptor, slot: Slot, *, sync_names: bool) -> None:
        """Make the folder of a new resource. Nothing is left of it when that fails.

        Args:
            descriptor: What is fixed about it.
            slot: Its first state.
            sync_names: Whether to wait until the names of files and folder are on disk.

        Raises:
            OSError: The disk is full, or the folder cannot be made.
            StorageFailure: The resource exists already.
        """
        place = self.folder(descriptor.id)
        new = self._creating / descriptor.id
        journal = pack_header(line_access=descriptor.metadata.lines).ljust(RECORDS_OFFSET, b"\0")
        offset = slot_offset(slot.snapshot.version)
        packed = pack_slot(slot)
        journal = journal[:offset] + packed + journal[offset + len(packed) :]
        new.mkdir()
        try:
            write_new_file(new / DATA, b"", sync=sync_names)
            write_new_file(new / JOURNAL, journal)
            write_new_file(new / DESCRIPTION, descriptor_to_json(descriptor).encode())
            if sync_names:
                sync_folder(new)
            try:
                new.rename(place)
            except OSError:
                if place.exists():
                    raise StorageFailure(f"resource {descriptor.id} is stored already") from None
                raise
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if sync_names:
            sync_folder(self._resources)

    def describe(self, id: str) -> Descriptor:
        """Return the descriptor of a resource.

        Raises:
            NotFound: There is no such resource.
            StorageFailure: Its description is damaged.
            OSError: It cannot be read.
        """
        try:
            return descriptor_from_json((self.folder(id) / DESCRIPTION).read_bytes())
        except FileNotFoundError:
            raise NotFound(id=id) from None

    def replace_description(self, descriptor: Descriptor) -> None:
        """Replace the descriptor of a resource; on disk when this returns.

        Raises:
            NotFound: There is no such resource.
            OSError: It cannot be written; the old descriptor stays.
        """
        folder = self.folder(descriptor.id)
        new = folder / _NEW_DESCRIPTION
        try:
            new.unlink(missing_ok=True)
            write_new_file(new, descriptor_to_json(descriptor).encode())
            new.replace(folder / DESCRIPTION)
            sync_folder(folder)
        except FileNotFoundError:
            raise NotFound(id=descriptor.id) from None

    def sync_names(self, id: str) -> None:
        """Wait until the names of a resource's folder and files are on disk.

        Raises:
            OSError: They cannot be synced.
        """
        sync_folder(self.folder(id))
        sync_folder(self._resources)

    def remove(self, id: str) -> None:
        """Remove a resource; from the first step on it is gone whatever happens, and that is on disk when this returns.

        Raises:
            NotFound: There is no such resource.
            OSError: It cannot be removed.
        """
        trash = self._trash / id
        try:
            self.folder(id).rename(trash)
        except FileNotFoundError:
            raise NotFound(id=id) from None
        sync_folder(self._trash)
        sync_folder(self._resources)
        shutil.rmtree(trash)

    def remove_temporary(self, id: str) -> None:
        """Remove what an interrupted replacement of the description has left.

        Raises:
            OSError: It cannot be removed.
        """
        (self.folder(id) / _NEW_DESCRIPTION).unlink(missing_ok=True)

    def remove_half_made(self, id: str) -> None:
        """Remove the folder of a resource whose creation was lost with the power, if there is one.

        Raises:
            StorageFailure: Files are missing, and the resource has bytes: something else has happened to it.
            OSError: It cannot be removed.
        """
        folder = self.folder(id)
        if not folder.exists():
            return
        data = folder / DATA
        if data.exists() and data.stat().st_size:
            raise StorageFailure(f"resource {id} has bytes and no journal")
        self.remove(id)

    def ids(self) -> list[str]:
        """Return the ids of all whole resources.

        Raises:
            OSError: The folder cannot be read.
        """
        return [name for name in os.listdir(self._resources) if _ID.match(name)]

    def unfinished_creations(self) -> list[str]:
        """Return the names of folders that are being made, or whose making was interrupted.

        Raises:
            OSError: The folder cannot be read.
        """
        return os.listdir(self._creating)

    def remove_creation(self, name: str) -> None:
        """Remove what is left of an interrupted creation.

        Raises:
            OSError: It cannot be removed.
        """
        shutil.rmtree(self._creating / name)
