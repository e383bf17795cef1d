"""The error tree of Tailrace: one root, one stable code per class.

::

    TailraceError
    ├── InvalidArgument (ValueError)          a value is refused where it is built, or by the server
    │   ├── InvalidReference                  not a reference and not an id
    │   ├── EncodingError                     text that does not decode
    │   └── ConfigurationError                settings that cannot work
    │       └── TransportMissing              no installed package serves the URL's scheme
    ├── NotFound (LookupError)                no such resource, or none that this caller may see
    │   ├── Deleted                           it was deleted, before or during the operation
    │   ├── ContextNotFound                   no such context
    │   └── RecordEndNotFound                 no such collection, source or queue
    ├── ContextClosed                         the context takes no more uploads
    ├── RangeNotSatisfiable (ValueError)      bytes outside [0, size)
    ├── LineRangeNotSatisfiable (ValueError)  lines outside [0, lines]
    ├── LineAccessDisabled                    a line request on a resource without line access
    ├── WrongOffset                           an append elsewhere than at the end
    ├── IntegrityError                        bytes that are not what was sent
    │   └── DamagedBlock                      stored bytes that no longer match their digest
    ├── SourceChanged                         the source is not the one whose bytes the server has
    ├── LengthMismatch                        a declared length was exceeded or missed
    ├── DigestMismatch                        a declared SHA-256 was not met
    ├── TokenRejected (PermissionError)       the upload token is not, or no longer, valid
    ├── Fenced                                a newer session of the same upload took over
    ├── AlreadyTerminal                       the upload has ended; nothing can be appended
    ├── IdempotencyConflict                   the key was used with different metadata
    │   └── BulkConflict                      the key was used for a bulk with other content
    ├── BulkRefused (ValueError)              records of a bulk cannot be accepted; none of them is
    ├── StagingLost                           the database lost staged records; nothing was committed
    ├── QueryFailed                           the source of a query failed
    ├── LeaseLost                             the delivery is not this consumer's any more
    ├── UploadAborted                         this client ended the upload without completing it
    ├── ResourceFailed                        the resource ended FAILED
    ├── Unauthenticated (PermissionError)     the caller did not prove who it is
    ├── PermissionDenied (PermissionError)    the caller may not do this
    ├── QuotaExceeded                         a limit is reached
    ├── StorageFull                           the server's disk is full
    ├── StorageFailure                        the server's storage failed
    ├── DataLost                              the server has less than it announced
    ├── Overloaded                            the server has no room; try later
    ├── GoingAway                             the server is shutting down; try later
    ├── ProtocolError                         the peer broke the protocol
    │   ├── MessageTooLarge                   a message above the announced limit
    │   └── Unsupported                       an unknown message, version or option
    ├── ConnectionLost (ConnectionError)      the connection ended in the middle of a conversation
    ├── DeadlineExceeded (TimeoutError)       a handshake or an acknowledgement did not come in time
    └── InternalError                         a defect of the server; details are in its log

Attributes come first and the text is made from them. Every error travels between processes as
``(code, message, details)`` and is rebuilt by :func:`error_from_wire` without loss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

WireValue = str | int | float | bool | None


class TailraceError(Exception):
    """Root of all errors raised by Tailrace.

    Subclasses state their ``code`` (stable, part of the protocol) and their ``fields``: the names of the
    keyword-only constructor arguments that are kept as attributes and travel as details.
    """

    code: ClassVar[str] = "error"
    fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        """What was asked, what holds, and what to do."""

    def details(self) -> dict[str, WireValue]:
        """Return the attributes of this error as a flat JSON-compatible mapping."""
        return {name: getattr(self, name) for name in self.fields}

    def __reduce__(self) -> tuple[Any, ...]:
        return (error_from_wire, (self.code, self.message, self.details()))


class _Described(TailraceError):
    """An error whose text its raiser writes."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class InvalidArgument(TailraceError, ValueError):
    """A value that cannot be accepted; ``field`` names it."""

    code = "invalid_argument"
    fields: ClassVar[tuple[str, ...]] = ("field", "problem")

    def __init__(self, *, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")


class InvalidReference(InvalidArgument):
    """Text that is neither a resource id nor a reference URI."""

    code = "invalid_reference"
    fields = ("reference",)

    def __init__(self, *, reference: str) -> None:
        self.reference = reference
        super().__init__(field="reference", problem=f"{_shown(reference)} is neither a resource id nor a reference")


class EncodingError(InvalidArgument):
    """Text that does not decode, or contradicts its byte-order mark; ``offset`` is in bytes of the input."""

    code = "encoding"
    fields = ("encoding", "offset", "problem")

    def __init__(self, *, encoding: str, offset: int, problem: str) -> None:
        self.encoding = encoding
        self.offset = offset
        super().__init__(field="source", problem=problem)
        self.message = f"source is not valid {encoding} at byte {offset}: {problem}"
        self.args = (self.message,)


class ConfigurationError(InvalidArgument):
    """Settings that cannot work."""

    code = "configuration"


class TransportMissing(ConfigurationError):
    """No installed package serves ``scheme``; ``package`` is the distribution to install."""

    code = "transport_missing"
    fields = ("scheme", "package")

    def __init__(self, *, scheme: str, package: str) -> None:
        self.scheme = scheme
        self.package = package
        super().__init__(
            field="url", problem=f"no installed transport serves {_shown(scheme + '://')}; install {package}"
        )


class NotFound(TailraceError, LookupError):
    """No resource has this id, or none that the caller may see."""

    code = "not_found"
    fields: ClassVar[tuple[str, ...]] = ("id",)

    def __init__(self, *, id: str) -> None:
        self.id = id
        super().__init__(f"no resource {_shown(id)}")


class Deleted(NotFound):
    """The resource was deleted."""

    code = "deleted"

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.message = f"resource {_shown(id)} was deleted"
        self.args = (self.message,)


class ContextNotFound(NotFound):
    """No context has this id, or none that the caller may see."""

    code = "context_not_found"

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.message = f"no context {_shown(id)}"
        self.args = (self.message,)


class RecordEndNotFound(NotFound):
    """No collection, source or queue has this name; ``kind`` says which was looked for."""

    code = "record_end_not_found"
    fields = ("kind", "id")

    def __init__(self, *, kind: str, id: str) -> None:
        super().__init__(id=id)
        self.kind = kind
        self.message = f"no {kind} {_shown(id)}"
        self.args = (self.message,)


class ContextClosed(TailraceError):
    """The context was closed: it takes no more uploads."""

    code = "context_closed"
    fields = ("id",)

    def __init__(self, *, id: str) -> None:
        self.id = id
        super().__init__(f"context {_shown(id)} is closed")


class RangeNotSatisfiable(TailraceError, ValueError):
    """A byte range that is not within ``[0, size]``; ``end`` is ``None`` for an open range."""

    code = "range_not_satisfiable"
    fields = ("start", "end", "size")

    def __init__(self, *, start: int, end: int | None, size: int) -> None:
        self.start = start
        self.end = end
        self.size = size
        shown_end = "" if end is None else end
        super().__init__(f"bytes [{start}, {shown_end}) are not within the {size} bytes that are readable")


class LineRangeNotSatisfiable(TailraceError, ValueError):
    """A line range that does not start within ``[0, lines]``, or has a negative count."""

    code = "line_range_not_satisfiable"
    fields = ("first", "count", "lines")

    def __init__(self, *, first: int, count: int | None, lines: int) -> None:
        self.first = first
        self.count = count
        self.lines = lines
        shown = "all" if count is None else count
        super().__init__(f"{shown} lines from line {first} are not within the {lines} lines that are readable")


class LineAccessDisabled(TailraceError):
    """The resource was uploaded without line access."""

    code = "line_access_disabled"
    fields = ("id",)

    def __init__(self, *, id: str) -> None:
        self.id = id
        super().__init__(f"resource {_shown(id)} was uploaded without line access")


class WrongOffset(TailraceError):
    """An append at ``offset`` where the upload continues at ``expected``."""

    code = "wrong_offset"
    fields = ("offset", "expected")

    def __init__(self, *, offset: int, expected: int) -> None:
        self.offset = offset
        self.expected = expected
        super().__init__(f"chunk at offset {offset} refused: the upload continues at offset {expected}")


class IntegrityError(TailraceError):
    """Bytes that are not what was sent; everything below ``offset`` is proven."""

    code = "integrity"
    fields = ("offset", "problem")

    def __init__(self, *, offset: int, problem: str) -> None:
        self.offset = offset
        self.problem = problem
        super().__init__(f"{problem}; the last proven offset is {offset}")


class DamagedBlock(IntegrityError):
    """Stored bytes that no longer match their digest; ``offset`` is the start of the damaged block."""

    code = "damaged_block"


class SourceChanged(TailraceError):
    """The source differs from what was sent of it before; the two agree below ``offset``."""

    code = "source_changed"
    fields = ("offset", "problem")

    def __init__(self, *, offset: int, problem: str) -> None:
        self.offset = offset
        self.problem = problem
        super().__init__(f"the source changed: {problem}; it is unchanged below offset {offset}")


class LengthMismatch(TailraceError):
    """The upload declared ``declared`` bytes and had ``actual``."""

    code = "length_mismatch"
    fields = ("declared", "actual")

    def __init__(self, *, declared: int, actual: int) -> None:
        self.declared = declared
        self.actual = actual
        super().__init__(f"the upload declared {declared} bytes and sent {actual}")


class DigestMismatch(TailraceError):
    """The SHA-256 of what arrived is not the declared one; both in hex."""

    code = "digest_mismatch"
    fields = ("declared", "actual")

    def __init__(self, *, declared: str, actual: str) -> None:
        self.declared = declared
        self.actual = actual
        super().__init__(f"the upload declared SHA-256 {declared} and sent bytes of SHA-256 {actual}")


class TokenRejected(TailraceError, PermissionError):
    """The upload token does not open this upload, or a newer token replaced it."""

    code = "token_rejected"
    fields = ("id",)

    def __init__(self, *, id: str) -> None:
        self.id = id
        super().__init__(f"the upload token does not open resource {_shown(id)}")


class Fenced(TailraceError):
    """A newer session took the upload over; nothing of this session counts after that."""

    code = "fenced"
    fields = ("epoch",)

    def __init__(self, *, epoch: int) -> None:
        self.epoch = epoch
        super().__init__(f"session of epoch {epoch} was replaced by a newer one")


class AlreadyTerminal(TailraceError):
    """The upload has ended in ``state`` and takes no more bytes."""

    code = "already_terminal"
    fields = ("id", "state")

    def __init__(self, *, id: str, state: str) -> None:
        self.id = id
        self.state = state
        super().__init__(f"resource {_shown(id)} has ended {state}")


class IdempotencyConflict(TailraceError):
    """The idempotency key names resource ``id``, which was created with different metadata."""

    code = "idempotency_conflict"
    fields = ("id",)

    def __init__(self, *, id: str) -> None:
        self.id = id
        super().__init__(f"the idempotency key was used for resource {_shown(id)} with different metadata")


class BulkConflict(IdempotencyConflict):
    """The idempotency key names bulk ``id``, which had other content or went elsewhere."""

    code = "bulk_conflict"

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.message = f"the idempotency key was used for bulk {_shown(id)} with other content"
        self.args = (self.message,)


class BulkRefused(TailraceError, ValueError):
    """Records of a bulk cannot be accepted, so none of them is.

    ``problems`` is JSON on the wire and here: ``[[index, kind, field or null, problem], …]``, bounded; ``total`` says
    how many there are in all, as far as the server has looked. :func:`tailrace_common_api.record_problems` reads it.
    """

    code = "bulk_refused"
    fields = ("problems", "total")

    def __init__(self, *, problems: str, total: int) -> None:
        self.problems = problems
        self.total = total
        found = json.loads(problems)
        if not isinstance(found, list):
            raise ValueError("problems are no list")
        if not found:
            super().__init__("the bulk has no records" if not total else f"{total} records cannot be accepted")
            return
        index, kind, field, problem = found[0]
        where = f", field {_shown(str(field))}" if field is not None else ""
        more = "" if total < 2 else f" (and {total - 1} more)"
        super().__init__(f"record {int(index)}{where}: {kind}: {problem}{more}")


class StagingLost(TailraceError):
    """The database holds ``found`` of the ``staged`` records of a bulk; nothing was committed. Send it again."""

    code = "staging_lost"
    fields = ("staged", "found")

    def __init__(self, *, staged: int, found: int) -> None:
        self.staged = staged
        self.found = found
        super().__init__(
            f"the database lost staged records: {staged} were staged and {found} are there; nothing was kept"
        )


class QueryFailed(_Described):
    """The source of a query failed; what was read before is right and not all."""

    code = "query_failed"


class LeaseLost(TailraceError):
    """Delivery ``attempt`` of record ``id`` is not this consumer's any more: its lease ended, and it went on."""

    code = "lease_lost"
    fields = ("id", "attempt")

    def __init__(self, *, id: int, attempt: int) -> None:
        self.id = id
        self.attempt = attempt
        super().__init__(f"attempt {attempt} at record {id} is over: the lease ended before it was answered")


class UploadAborted(TailraceError):
    """This client ended the upload without completing it."""

    code = "upload_aborted"
    fields = ("reason",)

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the upload was aborted: {reason}")


class ResourceFailed(TailraceError):
    """The resource ended FAILED after ``size`` bytes, all of which stay readable."""

    code = "resource_failed"
    fields = ("id", "reason", "size")

    def __init__(self, *, id: str, reason: str, size: int) -> None:
        self.id = id
        self.reason = reason
        self.size = size
        super().__init__(f"resource {_shown(id)} failed after {size} bytes: {reason}")


class Unauthenticated(_Described, PermissionError):
    """The caller did not prove who it is."""

    code = "unauthenticated"


class PermissionDenied(_Described, PermissionError):
    """The caller is known and may not do this."""

    code = "permission_denied"


class QuotaExceeded(TailraceError):
    """``limit`` is the name of the limit, ``maximum`` its value, ``actual`` what was asked for."""

    code = "quota_exceeded"
    fields = ("limit", "maximum", "actual")

    def __init__(self, *, limit: str, maximum: int, actual: int) -> None:
        self.limit = limit
        self.maximum = maximum
        self.actual = actual
        super().__init__(f"{limit} is limited to {maximum}; asked for {actual}")


class StorageFull(_Described):
    """The server's disk is full; what was announced is kept and the upload can be resumed."""

    code = "storage_full"


class StorageFailure(_Described):
    """The server's storage failed; what was announced is kept and the upload can be resumed."""

    code = "storage_failure"


class DataLost(TailraceError):
    """The server holds ``size`` bytes where it had announced ``announced``."""

    code = "data_lost"
    fields = ("announced", "size")

    def __init__(self, *, announced: int, size: int) -> None:
        self.announced = announced
        self.size = size
        super().__init__(f"the server announced {announced} bytes and has {size}")


class Overloaded(TailraceError):
    """The server has no room for this; ``retry_after`` is in seconds."""

    code = "overloaded"
    fields = ("what", "retry_after")

    def __init__(self, *, what: str, retry_after: float) -> None:
        self.what = what
        self.retry_after = retry_after
        super().__init__(f"the server is overloaded ({what}); retry after {retry_after:g} s")


class GoingAway(TailraceError):
    """The server is shutting down; ``retry_after`` is in seconds."""

    code = "going_away"
    fields = ("retry_after",)

    def __init__(self, *, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"the server is going away; retry after {retry_after:g} s")


class ProtocolError(_Described):
    """The peer broke the protocol."""

    code = "protocol"


class MessageTooLarge(ProtocolError):
    """A message of ``size`` bytes where at most ``maximum`` are allowed."""

    code = "message_too_large"
    fields = ("size", "maximum")

    def __init__(self, *, size: int, maximum: int) -> None:
        self.size = size
        self.maximum = maximum
        super().__init__(f"message of {size} bytes is above the limit of {maximum}")


class Unsupported(ProtocolError):
    """An unknown message, version or option."""

    code = "unsupported"


class ConnectionLost(_Described, ConnectionError):
    """The connection ended in the middle of a conversation."""

    code = "connection_lost"


class DeadlineExceeded(TailraceError, TimeoutError):
    """``what`` did not come within ``seconds``."""

    code = "deadline_exceeded"
    fields = ("what", "seconds")

    def __init__(self, *, what: str, seconds: float) -> None:
        self.what = what
        self.seconds = seconds
        super().__init__(f"{what} did not come within {seconds:g} s")


class InternalError(_Described):
    """A defect of the peer; its log has the details."""

    code = "internal"


def _shown(text: str) -> str:
    """Return ``text`` quoted, with everything but printable characters escaped, at most 80 characters of it."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def error_classes() -> Iterator[type[TailraceError]]:
    """Yield every concrete error class of the tree, each once."""
    pending: list[type[TailraceError]] = [TailraceError]
    seen: set[type[TailraceError]] = set()
    while pending:
        for child in pending.pop().__subclasses__():
            if child not in seen:
                seen.add(child)
                pending.append(child)
                if "code" in vars(child):
                    yield child


def error_from_wire(code: str, message: str, details: Mapping[str, WireValue]) -> TailraceError:
    """Rebuild the error that a peer sent.

    Args:
        code: Stable code of the class.
        message: Text of the error, as its sender had it.
        details: What :meth:`TailraceError.details` returned there.

    Returns:
        An error of the class with that code and these attributes. A code that this version does not know gives an
        :class:`InternalError` with the text; so do details that do not fit the code.
    """
    for cls in error_classes():
        if cls.code == code:
            break
    else:
        return InternalError(f"{code}: {message}")
    try:
        build: Callable[..., TailraceError] = cls
        error = build(**{name: details[name] for name in cls.fields}) if cls.fields else build(message)
    except (KeyError, TypeError, ValueError):
        return InternalError(f"{code}: {message}")
    error.message = message
    error.args = (message,)
    return error
