"""What a process must know to continue an upload that another one has begun: one small file."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest

from tailrace_common_api import ConfigurationError, IntegrityError

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedUpload:
    """An upload that is under way."""

    urls: tuple[str, ...]
    """URLs of the server."""
    source: str
    """What is uploaded, in the words of who does: a later process must say the same."""
    key: str
    """Idempotency key with which the resource was asked for."""
    id: str | None = None
    """Resource id; ``None`` until the server has answered."""
    token: str | None = None
    """Upload token; ``None`` until the server has answered. A secret."""
    reference: str | None = None
    """Reference of the resource; ``None`` until the server has answered."""
    ended: bool = False
    """Whether the source has ended, and what is spooled is all of it."""

    def __repr__(self) -> str:
        return f"SavedUpload(source={self.source!r}, id={self.id!r})"


class UploadStateFile:
    """The state of one upload, in a file that only its owner may read, since it holds the token.

    It is replaced as a whole, so whoever reads it finds the one state or the other. Beside it lie ``….lock``, which
    keeps a second process out, and ``….spool`` with what could not be read again. Everything here is blocking.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Use the file of this name; nothing is read or made yet. A relative one follows the working directory."""
        self.path = Path(path)
        self._lock = -1

    @property
    def spool_directory(self) -> Path:
        """Where the bytes of a source that cannot be read again are kept."""
        return self._beside("spool")

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def acquire(self) -> None:
        """Keep other processes out until :meth:`release`, or until this one ends in whatever way.

        Raises:
            ConfigurationError: Another one is at work.
            OSError: The lock file cannot be made.
        """
        if sys.platform == "win32":
            raise ConfigurationError(field="state", problem="needs a system with flock")
        import fcntl

        while self._lock < 0:
            descriptor = os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                problem = f"{str(self.path)!a} is in use by another process"
                raise ConfigurationError(field="state", problem=problem) from None
            # Its last owner may have removed the file between the two steps.
            if _is_named(descriptor, self._beside("lock")):
                self._lock = descriptor
            else:
                os.close(descriptor)

    def release(self) -> None:
        """Let other processes in; idempotent."""
        if self._lock >= 0:
            with suppress(FileNotFoundError):
                self._beside("lock").unlink()
            os.close(self._lock)
            self._lock = -1

    def load(self) -> SavedUpload | None:
        """Return the state; ``None`` when there is none.

        Raises:
            IntegrityError: The file is damaged, or none of this kind.
            OSError: It cannot be read.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            document = json.loads(text)
            body, check = document["upload"], document["check"]
            if document["format"] != _FORMAT:
                raise self._damaged(f"has format {document['format']!a}, which this version does not know")
            whole = check == _check(body)
            saved = SavedUpload(**{**body, "urls": tuple(body["urls"])})
        except (ValueError, KeyError, TypeError):
            raise self._damaged("is damaged, or no state of an upload") from None
        if not whole:
            raise self._damaged("is damaged")
        return saved

    def _damaged(self, what: str) -> IntegrityError:
        return IntegrityError(offset=0, problem=f"{str(self.path)!a} {what}")

    def save(self, saved: SavedUpload) -> None:
        """Replace the state.

        Raises:
            OSError: It cannot be written; what was there before is still there.
        """
        body = asdict(saved)
        document = {"format": _FORMAT, "upload": body, "check": _check(body)}
        part = self._beside("part")
        with suppress(FileNotFoundError):
            part.unlink()
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(json.dumps(document, indent=1).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self) -> None:
        """Forget the state; idempotent."""
        for path in (self.path, self._beside("part")):
            path.unlink(missing_ok=True)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _check(body: dict[str, Any]) -> str:
    known = {field.name: body[field.name] for field in fields(SavedUpload)}
    return xxh3_64_hexdigest(json.dumps(known, sort_keys=True).encode())
