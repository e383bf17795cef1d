"""Values that clients, servers and transports share.

Sizes and offsets are in bytes, times in seconds (timestamps: seconds since the Unix epoch), line numbers start at 0.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from tailrace_common_api._errors import InvalidArgument

MAX_OFFSET = 2**53 - 1
"""Largest offset: what a JSON number holds exactly."""
HEAD_SIZE = 16
"""Length of a head in bytes."""

_MAX_NAME = 1024
_MAX_CONTENT_TYPE = 255
_MAX_LABELS = 64
_MAX_LABEL_KEY = 128
_MAX_LABEL_VALUE = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# RFC 9110, section 8.3.1: type "/" subtype *( OWS ";" OWS parameter ), both of token characters.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t \x21-\x7e])*"'
_CONTENT_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*\Z")


class ResourceState(enum.Enum):
    """States of a resource; the two terminal ones never change again."""

    INITIATED = "INITIATED"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"

    @property
    def terminal(self) -> bool:
        """Whether the resource has ended."""
        return self is ResourceState.COMPLETED or self is ResourceState.FAILED


class Visibility(enum.Enum):
    """Who sees a resource before it is complete."""

    LIVE = "live"
    """Everyone, from the moment the upload is accepted."""
    ATOMIC = "atomic"
    """Only who shows the upload token; an upload that does not complete leaves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What the uploader says of a resource.

    Raises:
        InvalidArgument: A value breaks the rule that its docstring states.
    """

    name: str
    """File name, 1 to 1,024 characters without control characters. Never used as a path by a server."""
    content_type: str = "application/octet-stream"
    """Media type ``type/subtype`` with optional parameters, at most 255 characters."""
    lines: bool = False
    """Whether the resource can be read by lines."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Free labels: at most 64, keys of 1 to 128 and values of up to 1,024 characters, no control characters."""
    context: str | None = None
    """Id of the context that owns the resource; ``None`` for no context."""

    def __post_init__(self) -> None:
        _check_text("name", self.name, minimum=1, maximum=_MAX_NAME)
        _check_text("content_type", self.content_type, minimum=3, maximum=_MAX_CONTENT_TYPE)
        if not _CONTENT_TYPE.match(self.content_type):
            raise InvalidArgument(field="content_type", problem=f"{self.content_type!a} is not type/subtype")
        if type(self.lines) is not bool:
            raise InvalidArgument(field="lines", problem="not a boolean")
        _check_labels("labels", self.labels)
        if self.context is not None:
            _check_text("context", self.context, minimum=1, maximum=_MAX_LABEL_KEY)


def _check_labels(field_name: str, labels: object) -> None:
    if not isinstance(labels, Mapping):
        raise InvalidArgument(field=field_name, problem="not a mapping")
    if len(labels) > _MAX_LABELS:
        raise InvalidArgument(field=field_name, problem=f"{len(labels)} {field_name}; at most {_MAX_LABELS}")
    for key, value in labels.items():
        _check_text(field_name, key, minimum=1, maximum=_MAX_LABEL_KEY)
        _check_text(field_name, value, minimum=0, maximum=_MAX_LABEL_VALUE)


def _check_text(field_name: str, text: object, *, minimum: int, maximum: int) -> None:
    if not isinstance(text, str):
        raise InvalidArgument(field=field_name, problem="not a string")
    if not minimum <= len(text) <= maximum:
        raise InvalidArgument(field=field_name, problem=f"{len(text)} characters; {minimum} to {maximum} are allowed")
    if match := _CONTROL.search(text):
        raise InvalidArgument(field=field_name, problem=f"contains the control character {match.group()!a}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An announced size: everyone may read up to it, and the uploader may forget what is below it."""

    size: int
    """Bytes from the start of the resource."""
    newlines: int
    """Bytes ``\\n`` below ``size``; 0 without line access."""
    head: bytes
    """Head of exactly these bytes, 16 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of a resource at one version."""

    reference: str
    """Reference under the public base of the transport that answered."""
    id: str
    """Resource id."""
    version: int
    """Strictly rising with every change, also across restarts of the server."""
    state: ResourceState
    """State; terminal ones never change again."""
    size: int
    """Announced size in bytes."""
    lines: int | None
    """Lines below ``size``, an unterminated last one counted only in a terminal state; ``None`` without line access."""
    head: bytes
    """Head at exactly ``size``, 16 bytes."""
    reason: str | None
    """Why the resource failed; ``None`` unless FAILED."""
    alternatives: tuple[str, ...]
    """References of the same resource under every transport of the server."""
    metadata: Metadata
    """What the uploader said of it."""
    visibility: Visibility
    """Who sees the resource before it is complete."""
    created_at: float
    """Time of creation on the server's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server accepts; announced in every handshake."""

    chunk_size: int
    """Largest chunk of an upload or download, in bytes."""
    upload_window: int
    """Bytes of an upload that may be unacknowledged."""
    upload_grace: float
    """Time that a lost uploader has to come back, in seconds."""
    max_download_window: int
    """Largest window that a reader may grant, in bytes."""
    max_resource_size: int
    """Largest resource, in bytes."""
    max_page_size: int
    """Most entries in one page of a listing."""
    max_heads: int
    """Most sizes in one request for heads."""
    max_context_bytes: int
    """Most bytes of all resources of one context."""
    max_context_resources: int
    """Most resources of one context."""
    max_storage_bytes: int
    """Most bytes of all resources of the server."""
    max_uploads: int
    """Most uploads that are unfinished at the same time, over the whole server."""
    max_contexts: int
    """Most contexts that are open at the same time."""
    max_requests: int
    """Most requests that run on one connection at the same time."""
    context_required: bool
    """Whether every upload must name a context."""


class ContextState(enum.Enum):
    """Whether a context takes uploads."""

    OPEN = "OPEN"
    """It does."""
    CLOSED = "CLOSED"
    """It does not any more; what it has stays readable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A scope that owns resources: a test run, a build."""

    id: str
    """Context id, made by the server; of the same form as resource ids."""
    attributes: Mapping[str, str]
    """What its creator said of it; the rules are those of labels."""
    state: ContextState
    """Whether it takes uploads."""
    created_at: float
    """Time of creation on the server's clock, seconds since the Unix epoch."""
    closed_at: float | None
    """When it was closed; ``None`` while it is open."""
    resources: int
    """Resources that it has."""
    bytes: int
    """Announced bytes of all of them."""
    last_event: int = 0
    """Number of its last event; 0 when there was none since the server started."""


class ContextEventKind(enum.Enum):
    """What happens in a context."""

    CREATED = "CREATED"
    """A resource was created."""
    STATUS_CHANGED = "STATUS_CHANGED"
    """The state of a resource changed."""
    REFUSED = "REFUSED"
    """An upload, or more of it, was refused."""
    DELETED = "DELETED"
    """A resource was deleted."""
    CLOSED = "CLOSED"
    """The context was closed; always the last event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextEvent:
    """Something that happened in a context."""

    sequence: int
    """Number of the event in its context, rising by one from 1 on, for as long as the server runs; a gap shows that
    events were missed."""
    at: float
    """When, seconds since the Unix epoch."""
    kind: ContextEventKind
    """What."""
    id: str | None
    """The resource; ``None`` for a refused creation and for CLOSED."""
    state: ResourceState | None
    """State of the resource; ``None`` where there is no resource."""
    size: int | None
    """Its announced size; ``None`` where there is no resource."""
    code: str | None
    """Code of the error, for REFUSED; else ``None``."""
    message: str | None
    """Text of the error for REFUSED, reason of the failure for a FAILED resource; else ``None``."""


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Check the attributes of a context; the rules are those of labels.

    Raises:
        InvalidArgument: They break one.
    """
    _check_labels("attributes", attributes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFilter:
    """What a listing selects; unset fields select everything.

    Raises:
        InvalidArgument: The labels break a rule of those of :class:`Metadata`, or a time is no finite number.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that must all be present with these values; at most 64."""
    context: str | None = None
    """Context that must own the resource."""
    state: ResourceState | None = None
    """State that the resource must have."""
    created_from: float | None = None
    """Earliest time of creation, inclusive."""
    created_before: float | None = None
    """Latest time of creation, exclusive."""

    def __post_init__(self) -> None:
        _check_labels("labels", self.labels)
        for name, time in (("created_from", self.created_from), ("created_before", self.created_before)):
            if time is not None and not isfinite(time):
                raise InvalidArgument(field=name, problem=f"{time} is no point in time")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing, oldest first."""

    statuses: tuple[Status, ...]
    """Resources of this page."""
    next_token: str | None
    """Pass it to get the next page; ``None`` after the last."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a resource that holds a line: what relates line numbers and byte offsets."""

    line: int
    """Line number."""
    offset: int
    """Offset of the first byte of that line."""


@dataclass(frozen=True, slots=True)
class FromOffset:
    """Start at byte ``offset``."""

    offset: int = 0


@dataclass(frozen=True, slots=True)
class LastBytes:
    """Start ``count`` bytes before the end, or at 0 when there is less."""

    count: int


@dataclass(frozen=True, slots=True)
class LastLines:
    """Start ``count`` complete lines before the end.

    An unterminated last line comes on top of them while the resource is in progress, and is one of them once it ended.
    """

    count: int


Start = FromOffset | LastBytes | LastLines
"""Where a follower starts."""
