"""What the exit code of a command says."""

from __future__ import annotations

import enum

from tailrace_common_api import (
    ConfigurationError,
    DataLost,
    DigestMismatch,
    EncodingError,
    IntegrityError,
    InvalidArgument,
    InvalidReference,
    LengthMismatch,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    SourceChanged,
    TailraceError,
    TokenRejected,
    Unauthenticated,
)


class ExitCode(enum.IntEnum):
    """Exit codes of the command line; scripts rely on them."""

    SUCCESS = 0
    FAILED = 1
    """The operation failed."""
    USAGE = 2
    """The command cannot be understood, or its settings cannot work."""
    REFERENCE = 3
    """The reference is unknown or malformed, the resource was deleted, or no end of record streams is called so."""
    INTEGRITY = 4
    """Bytes are not what they should be."""
    REFUSED = 5
    """A quota is reached, or access is denied."""
    INTERRUPTED = 130
    """The user ended the command."""


_CODES: dict[type[TailraceError], ExitCode] = {
    TailraceError: ExitCode.FAILED,
    ConfigurationError: ExitCode.USAGE,
    InvalidArgument: ExitCode.USAGE,
    # Found in the input, not in how the command was called.
    EncodingError: ExitCode.FAILED,
    InvalidReference: ExitCode.REFERENCE,
    NotFound: ExitCode.REFERENCE,
    IntegrityError: ExitCode.INTEGRITY,
    DigestMismatch: ExitCode.INTEGRITY,
    LengthMismatch: ExitCode.INTEGRITY,
    SourceChanged: ExitCode.INTEGRITY,
    DataLost: ExitCode.INTEGRITY,
    QuotaExceeded: ExitCode.REFUSED,
    Unauthenticated: ExitCode.REFUSED,
    PermissionDenied: ExitCode.REFUSED,
    TokenRejected: ExitCode.REFUSED,
}


def exit_code_of(error: TailraceError) -> ExitCode:
    """Return the exit code for an error: that of its nearest class in the table."""
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)
