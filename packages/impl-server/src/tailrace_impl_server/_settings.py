"""Settings of a server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from tailrace_common_api import (
    KIBIBYTE,
    MAX_OFFSET,
    MAX_RECORD_SIZE,
    MEBIBYTE,
    RECORD_OVERHEAD,
    ConfigurationError,
    Limits,
    RecordLimits,
)
from tailrace_server_api import Durability

_LARGEST_CHUNK = 4 * MEBIBYTE - 64 * KIBIBYTE
"""A message with its framing stays below the 4 MiB that gRPC allows by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of the manager and its storage.

    Raises:
        ConfigurationError: A value cannot work.
    """

    durability: Durability = Durability.OS
    """What an announced byte survives."""
    writer_threads: int = 4
    """Threads that write to disk, shared by all uploads."""
    checkpoint_interval: float = 0.0
    """Least time between two announcements of one upload, in seconds."""
    chunk_size: int = MEBIBYTE
    """Largest chunk of an upload or download, in bytes."""
    upload_window: int = 4 * MEBIBYTE
    """Bytes of an upload that may be unacknowledged."""
    upload_windows_total: int = 512 * MEBIBYTE
    """Bytes that may be unacknowledged over all uploads; with many of them each gets a smaller window."""
    upload_grace: float = 60.0
    """Time that a lost uploader has to come back, in seconds."""
    max_download_window: int = 16 * MEBIBYTE
    """Largest window that a reader may grant, in bytes."""
    max_resource_size: int = 1024**4
    """Largest resource, in bytes."""
    max_context_bytes: int = 1024**4
    """Most bytes of all resources of one context."""
    max_context_resources: int = 100_000
    """Most resources of one context."""
    max_storage_bytes: int = 16 * 1024**4
    """Most bytes of all resources."""
    max_uploads: int = 10_000
    """Most uploads that are unfinished at the same time."""
    max_contexts: int = 10_000
    """Most contexts that are open at the same time."""
    max_requests: int = 1024
    """Most requests that run on one connection at the same time."""
    max_running_requests: int = 20_000
    """Most requests that run at the same time, over all connections."""
    context_required: bool = False
    """Whether every upload must name a context."""
    context_events: int = 256
    """Events of each context that are kept in memory for who asks for them later."""
    hook_timeout: float = 30.0
    """Longest time that a hook may take, in seconds."""
    tokens: str | None = None
    """File of the bearer tokens that give access; ``None``: everybody is let in, unless :attr:`authenticator` says
    otherwise."""
    authenticator: str | None = None
    """``MODULE:NAME`` of a callable without arguments that returns an ``Authenticator``; instead of :attr:`tokens`."""
    authorizer: str | None = None
    """``MODULE:NAME`` of a callable without arguments that returns an ``Authorizer``; ``None``: scopes decide."""
    hooks: str | None = None
    """``MODULE:NAME`` of a callable without arguments that returns the ``ServerHooks``; ``None`` for none."""
    max_page_size: int = 1000
    """Most entries in one page of a listing."""
    max_heads: int = 1000
    """Most sizes in one request for heads."""
    tail_bytes: int | None = None
    """Recent bytes of one resource that are kept in memory for its followers; ``None`` for two upload windows."""
    tails_total: int = 64 * MEBIBYTE
    """Recent bytes that are kept in memory over all resources."""
    tail_idle: float = 10.0
    """Time without new bytes after which those of a resource are not kept in memory any more, in seconds."""
    retention_completed: float | None = None
    """Time after which a COMPLETED resource is deleted, in seconds; ``None``: never."""
    retention_failed: float | None = None
    """Time after which a FAILED resource is deleted, in seconds; ``None``: never."""
    sweep_interval: float = 5.0
    """Time between two looks for what has outlived its retention, in seconds."""
    poll_interval: float = 5.0
    """Time between two looks at watched resources that another process may write, in seconds."""
    memory_bytes: int = 256 * MEBIBYTE
    """Bytes that the memory storage may hold, where it is used."""
    max_record_size: int = MEBIBYTE
    """Largest record, data and key together, in bytes."""
    max_bulks: int = 1000
    """Most bulks that run at the same time."""
    max_bulk_records: int = 10_000_000
    """Most records of one bulk."""
    max_bulk_bytes: int = 16 * 1024**3
    """Most bytes of one bulk, data and keys together."""
    bulk_idle: float = 60.0
    """Longest time in which a bulk may send nothing, in seconds."""
    bulk_window: int = 4 * MEBIBYTE
    """Bytes of records of a bulk that may wait between its client and the database, each counted with 8 more."""
    bulk_windows_total: int = 512 * MEBIBYTE
    """Bytes of records that may wait so over all bulks; with many of them each gets a smaller window, but always one
    that is large enough for the largest record."""
    group_records: int = 1000
    """Most records that are staged at once."""
    group_seconds: float = 0.1
    """Longest time that a record waits for others to be staged with, in seconds."""
    staging_retention: float = 3600.0
    """Time after which staged records that nobody committed are purged, in seconds."""
    bulk_result_retention: float = 7 * 86400.0
    """Time for which the results of bulks with an idempotency key are kept, in seconds."""
    max_consumers: int = 10_000
    """Most consumers of queues that are connected at the same time."""
    max_credit: int = 100_000
    """Most records that one consumer may take unanswered."""

    def __post_init__(self) -> None:
        if not isinstance(self.durability, Durability):
            raise ConfigurationError(field="durability", problem=f"{self.durability!a} is neither 'os' nor 'fsync'")
        for name, least, most in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if type(value) is not int or not least <= value <= most:
                raise ConfigurationError(field=name, problem=f"{value!a} is no number within {least} and {most}")
        required: object = self.context_required
        if type(required) is not bool:
            problem = f"{required!a} is neither true nor false"
            raise ConfigurationError(field="context_required", problem=problem)
        for name in _NAMES:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigurationError(field=name, problem=f"{value!a} is not text")
        for name, earliest in _TIMES:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if type(value) not in (int, float) or not math.isfinite(value) or not value >= earliest:
                raise ConfigurationError(field=name, problem=f"{value!a} is no number of seconds from {earliest:g} on")
        if self.bulk_window < self.max_record_size + RECORD_OVERHEAD:
            problem = f"{self.bulk_window} bytes are not enough for a record of {self.max_record_size} bytes"
            raise ConfigurationError(field="bulk_window", problem=problem)

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> ServerSettings:
        """Build settings from options by name; text is read as the type that the setting has.

        Raises:
            ConfigurationError: An option is unknown or cannot be read.
        """
        known = {field.name: field for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in known:
                raise ConfigurationError(field=name, problem=f"unknown; known are {', '.join(known)}")
            default = known[name].default
            assert default is not MISSING
            values[name] = _read_option(name, value, default)
        return cls(**values)

    @property
    def limits(self) -> Limits:
        """What is announced to clients."""
        return Limits(
            chunk_size=self.chunk_size,
            upload_window=self.upload_window,
            upload_grace=self.upload_grace,
            max_download_window=self.max_download_window,
            max_resource_size=self.max_resource_size,
            max_page_size=self.max_page_size,
            max_heads=self.max_heads,
            max_context_bytes=self.max_context_bytes,
            max_context_resources=self.max_context_resources,
            max_storage_bytes=self.max_storage_bytes,
            max_uploads=self.max_uploads,
            max_contexts=self.max_contexts,
            max_requests=self.max_requests,
            context_required=self.context_required,
        )

    @property
    def record_limits(self) -> RecordLimits:
        """What is announced to clients that send bulks."""
        return RecordLimits(
            record_bytes=self.max_record_size,
            bulk_records=self.max_bulk_records,
            bulk_bytes=self.max_bulk_bytes,
            bulk_idle=self.bulk_idle,
            window=self.bulk_window,
        )

    @property
    def tail_limit(self) -> int:
        """Recent bytes of one resource that are kept in memory."""
        return 2 * self.upload_window if self.tail_bytes is None else self.tail_bytes


_OPTIONAL = frozenset({"tail_bytes", "retention_completed", "retention_failed"})
_NAMES = ("tokens", "authenticator", "authorizer", "hooks")
_WHOLE_NUMBERS = (
    ("writer_threads", 1, 256),
    ("chunk_size", KIBIBYTE, _LARGEST_CHUNK),
    ("upload_window", 4 * KIBIBYTE, 1024 * MEBIBYTE),
    ("upload_windows_total", 4 * KIBIBYTE, MAX_OFFSET),
    ("max_download_window", KIBIBYTE, 1024 * MEBIBYTE),
    ("max_resource_size", 0, MAX_OFFSET),
    ("max_context_bytes", 0, MAX_OFFSET),
    ("max_context_resources", 0, MAX_OFFSET),
    ("max_storage_bytes", 0, MAX_OFFSET),
    ("max_uploads", 1, MAX_OFFSET),
    ("max_contexts", 0, MAX_OFFSET),
    ("max_requests", 1, 100_000),
    ("max_running_requests", 1, MAX_OFFSET),
    ("context_events", 1, 100_000),
    ("max_page_size", 1, 100_000),
    ("max_heads", 1, 100_000),
    ("tail_bytes", 0, MAX_OFFSET),
    ("tails_total", 0, MAX_OFFSET),
    ("memory_bytes", 0, MAX_OFFSET),
    ("max_record_size", 1, MAX_RECORD_SIZE),
    ("max_bulks", 1, MAX_OFFSET),
    ("max_bulk_records", 1, MAX_OFFSET),
    ("max_bulk_bytes", 1, MAX_OFFSET),
    ("bulk_window", 4 * KIBIBYTE, 1024 * MEBIBYTE),
    ("bulk_windows_total", 4 * KIBIBYTE, MAX_OFFSET),
    ("group_records", 1, 100_000),
    ("max_consumers", 1, MAX_OFFSET),
    ("max_credit", 1, MAX_OFFSET),
)
_TIMES = (
    ("checkpoint_interval", 0.0),
    ("upload_grace", 0.0),
    ("tail_idle", 0.0),
    ("retention_completed", 0.0),
    ("retention_failed", 0.0),
    ("hook_timeout", 0.001),
    ("sweep_interval", 0.001),
    ("poll_interval", 0.001),
    ("bulk_idle", 0.001),
    ("group_seconds", 0.0),
    ("staging_retention", 0.001),
    ("bulk_result_retention", 0.0),
)
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_TIME_NAMES = frozenset(name for name, _ in _TIMES)


def _read_option(name: str, value: object, default: object) -> object:
    """Return ``value`` as the type of the setting; text that cannot be read is refused, other values pass."""
    if not isinstance(value, str):
        return value
    if isinstance(default, Durability):
        return next((durability for durability in Durability if durability.value == value), value)
    if name in _NAMES:
        return value or None
    if isinstance(default, bool):
        return _FLAGS.get(value.lower(), value)
    if value.lower() in ("", "none") and name in _OPTIONAL:
        return None
    try:
        return float(value) if name in _TIME_NAMES else int(value)
    except ValueError:
        raise ConfigurationError(field=name, problem=f"{value!a} is not a number") from None
