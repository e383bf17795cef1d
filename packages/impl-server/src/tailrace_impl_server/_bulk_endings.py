"""What a bulk is told that was ended by somebody else: the protocol's ``Fenced``, with a text that fits a bulk."""

from __future__ import annotations

from tailrace_common_api import Fenced

_NOTHING = "nothing of this one was kept"


def taken_over() -> Fenced:
    """Return the error of a bulk whose idempotency key a newer bulk has."""
    return _told(f"a newer bulk has the same idempotency key; {_NOTHING}")


def rolled_back() -> Fenced:
    """Return the error of a bulk that was rolled back before, or that this server has never begun."""
    return _told(f"the bulk was rolled back; {_NOTHING}")


def lost_to_another(key: str | None) -> Fenced:
    """Return the error of a bulk that its database does not know as running any more."""
    swept = "it was swept, because its server was taken for dead or nothing was staged of it for too long"
    if key is None:
        return _told(f"the bulk has ended: {swept}; {_NOTHING}")
    return _told(f"the bulk has ended: a newer one has the same idempotency key, or {swept}; {_NOTHING}")


def _told(text: str) -> Fenced:
    # Bulks have no epochs.
    error = Fenced(epoch=0)
    error.message = text
    error.args = (text,)
    return error
