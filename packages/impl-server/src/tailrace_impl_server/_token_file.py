"""The file of bearer tokens: what is kept of each, and how the file is read and changed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailrace_common_api import ConfigurationError
from tailrace_server_api import Operation

try:
    import fcntl
except ImportError:  # Not on this system: two commands at the same moment are not kept apart there.
    fcntl = None  # type: ignore[assignment]  # a module, where there is one

FORMAT = "tailrace-tokens"
VERSION = 1
MODE = 0o600
"""Permissions of the file: its owner alone reads and writes it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_ID = re.compile(r"[0-9a-f]{16}")
_TOKEN = re.compile(r"tr_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_CONTEXT = re.compile(r"[0-9A-Za-z_-]{1,255}")
_SALT_BYTES, _SECRET_BYTES, _HASH_BYTES = 16, 32, 32
_LARGEST_FILE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntry:
    """What is kept of a token; the token itself is not."""

    id: str
    """First part of the token, by which it is found; no secret."""
    name: str
    """Name of the principal; unique in its file."""
    salt: bytes
    hash: bytes
    """SHA-256 of salt and token."""
    scopes: frozenset[Operation]
    """What it may be used for."""
    context: str | None
    """Id of the only context in which it may be used; ``None``: everywhere."""
    created_at: float
    """Seconds since the epoch."""
    expires_at: float | None
    """Seconds since the epoch from which on it is worth nothing; ``None``: never."""

    def expired(self, now: float) -> bool:
        """Return whether the token is worth nothing any more."""
        return self.expires_at is not None and now >= self.expires_at


_NOBODY = TokenEntry(
    id="0" * 16,
    name="nobody",
    salt=bytes(_SALT_BYTES),
    hash=bytes(_HASH_BYTES),
    scopes=frozenset(),
    context=None,
    created_at=0.0,
    expires_at=0.0,
)
"""Stands in for the entry of an unknown token, so that the same is done for it."""


def find_token(token: str, entries: Mapping[str, TokenEntry], now: float) -> TokenEntry | None:
    """Return the entry of a token; ``None`` if it is unknown, wrong or expired.

    The same work is done in every case: what is no token at all is hashed and compared like a valid one.

    Args:
        token: What somebody shows.
        entries: Known entries by their ids.
        now: Seconds since the epoch.
    """
    match = _TOKEN.fullmatch(token)
    entry = entries.get("" if match is None else match[1], _NOBODY)
    matches = hmac.compare_digest(_hash(entry.salt, token), entry.hash)
    valid = matches & (entry is not _NOBODY) & (not entry.expired(now))
    return entry if valid else None


class TokenFile:
    """A file of bearer tokens. All methods block; changes are atomic, and safe beside other processes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Use the file at ``path``; it need not exist before the first token is added."""
        self.path = Path(path)

    def add(
        self,
        name: str,
        scopes: Iterable[Operation],
        *,
        context: str | None = None,
        expires_in: float | None = None,
    ) -> str:
        """Add a token and return it; it is kept nowhere, and cannot be had again.

        Args:
            name: Whom it is for: 1 to 64 letters, digits, ``.``, ``_``, ``@`` and ``-``, the first a letter or digit.
            scopes: What it may be used for; at least one.
            context: Id of the only context in which it may be used; ``None``: everywhere.
            expires_in: Seconds for which it is valid; ``None``: until it is revoked.

        Raises:
            ConfigurationError: The name is in use, a value is not allowed, or the file cannot be used.
        """
        scopes = frozenset(scopes)
        if not _NAME.fullmatch(name):
            problem = f"{name!a} is not 1 to 64 letters, digits and . _ @ -, the first a letter or digit"
            raise ConfigurationError(field="name", problem=problem)
        if not scopes:
            raise ConfigurationError(field="scope", problem="a token without a scope is of no use")
        if context is not None and not _CONTEXT.fullmatch(context):
            raise ConfigurationError(field="context", problem=f"{context!a} is no id of a context")
        if expires_in is not None and not 0 < expires_in < 1e11:
            raise ConfigurationError(field="expires", problem="not a positive time")
        with self._changing() as entries:
            if any(entry.name == name for entry in entries.values()):
                raise ConfigurationError(field="name", problem=f"there is a token for {name} already")
            token_id = secrets.token_hex(8)
            token = f"tr_{token_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
            salt, now = secrets.token_bytes(_SALT_BYTES), time.time()
            entries[token_id] = TokenEntry(
                id=token_id,
                name=name,
                salt=salt,
                hash=_hash(salt, token),
                scopes=scopes,
                context=context,
                created_at=now,
                expires_at=None if expires_in is None else now + expires_in,
            )
        return token

    def revoke(self, name: str) -> None:
        """Remove the token of ``name``, which can then get a new one.

        Raises:
            ConfigurationError: There is none, or the file cannot be used.
        """
        with self._changing() as entries:
            found = next((entry for entry in entries.values() if entry.name == name), None)
            if found is None:
                raise ConfigurationError(field="name", problem=f"there is no token for {name!a}")
            del entries[found.id]

    def entries(self) -> Mapping[str, TokenEntry]:
        """Return what is kept, by id.

        Raises:
            ConfigurationError: The file is not there, cannot be read, is damaged, or can be read by others.
        """
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise self._unusable("is no file")
                if os.name == "posix" and status.st_mode & 0o077:
                    mode = stat.S_IMODE(status.st_mode)
                    raise self._unusable(f"can be used by others (mode {mode:04o}); make it 0600")
                data = file.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise self._unusable(error.strerror or type(error).__name__) from None
        try:
            return _parse(data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._unusable("is damaged, or no file of tokens") from None

    def signature(self) -> tuple[int, int, int, int] | None:
        """Return what changes when the file does; ``None`` when it is not there."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    @contextmanager
    def _changing(self) -> Generator[dict[str, TokenEntry], None, None]:
        """Hand out the entries, and write them back unless the block fails."""
        with self._locked():
            entries = dict(self.entries()) if self.path.exists() else {}
            yield entries
            self._write(_format(entries.values()))

    @contextmanager
    def _locked(self) -> Generator[None, None, None]:
        # A file of its own: the other one is replaced by each change.
        try:
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        except OSError as error:
            raise self._unusable(error.strerror or type(error).__name__) from None
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, data: bytes) -> None:
        temporary: str | None = None
        try:
            # Made with mode 0600, whatever the umask.
            descriptor, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            temporary = None
            _sync_folder(self.path.parent)
        except OSError as error:
            raise self._unusable(error.strerror or type(error).__name__) from None
        finally:
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)

    def _unusable(self, problem: str) -> ConfigurationError:
        return ConfigurationError(field="tokens", problem=f"{str(self.path)!a}: {problem}")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(salt: bytes, token: str) -> bytes:
    # Tokens are 256 random bits, which nobody guesses however fast the hash is; a slow one would cost every request.
    return hashlib.sha256(salt + token.encode("utf-8", "surrogatepass")).digest()


def _format(entries: Iterable[TokenEntry]) -> bytes:
    tokens = [
        {
            "id": entry.id,
            "name": entry.name,
            "salt": entry.salt.hex(),
            "hash": entry.hash.hex(),
            "scopes": sorted(scope.value for scope in entry.scopes),
            "context": entry.context,
            "created_at": entry.created_at,
            "expires_at": entry.expires_at,
        }
        for entry in entries
    ]
    return (json.dumps({"format": FORMAT, "version": VERSION, "tokens": tokens}, indent=2) + "\n").encode()


def _parse(data: bytes) -> dict[str, TokenEntry]:
    """Read the file; raises one of the errors of wrong types and values for what is not as it was written."""
    if len(data) > _LARGEST_FILE:
        raise ValueError("too large")
    content = json.loads(data)
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError("another format")
    found = [_parse_entry(item) for item in content["tokens"]]
    entries = {entry.id: entry for entry in found}
    if len(entries) != len(found) or len({entry.name for entry in found}) != len(found):
        raise ValueError("an id or name is there twice")
    return entries


def _parse_entry(item: Any) -> TokenEntry:
    salt, digest = bytes.fromhex(item["salt"]), bytes.fromhex(item["hash"])
    context, created_at, expires_at = item["context"], item["created_at"], item["expires_at"]
    if not (_ID.fullmatch(item["id"]) and _NAME.fullmatch(item["name"])):
        raise ValueError("id or name")
    if len(salt) != _SALT_BYTES or len(digest) != _HASH_BYTES:
        raise ValueError("salt or hash")
    if context is not None and not _CONTEXT.fullmatch(context):
        raise ValueError("context")
    for moment in (created_at, 0.0 if expires_at is None else expires_at):
        if type(moment) not in (int, float):
            raise TypeError("time")
    return TokenEntry(
        id=item["id"],
        name=item["name"],
        salt=salt,
        hash=digest,
        scopes=frozenset(Operation(scope) for scope in item["scopes"]),
        context=context,
        created_at=created_at,
        expires_at=expires_at,
    )
