"""References: the URIs that name resources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from tailrace_common_api._errors import InvalidReference

# 160 bits in base32hex (RFC 4648, lower case): 56 bits of microseconds, then 104 random bits. The alphabet keeps the
# byte order, so ids sort by creation time.
ID_LENGTH = 32
_ID = re.compile(r"[0-9a-v]{32}\Z")
_CLIENT_SCHEMES = {"http": "ws", "https": "wss"}


def check_id(text: str) -> str:
    """Return ``text`` if it has the form of a resource id.

    Raises:
        InvalidReference: It has not.
    """
    if not _ID.match(text):
        raise InvalidReference(reference=text)
    return text


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference ``<base>/r/<id>``, or a bare id."""

    id: str
    """Resource id: 32 characters of ``0-9a-v``."""
    base: str | None
    """URL of the server that the reference names, without a trailing slash; ``None`` for a bare id.
    ``http`` and ``https`` are given as ``ws`` and ``wss``: the same server, reachable by a client."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference or a bare id.

        Raises:
            InvalidReference: ``text`` is neither.
        """
        if _ID.match(text):
            return cls(text, None)
        try:
            parts = urlsplit(text)
            valid = parts.scheme and parts.netloc and not parts.query and not parts.fragment
        except ValueError:
            valid = ""
        if not valid:
            raise InvalidReference(reference=text)
        prefix, separator, id_ = parts.path.rpartition("/r/")
        if not separator or not _ID.match(id_):
            raise InvalidReference(reference=text)
        scheme = _CLIENT_SCHEMES.get(parts.scheme, parts.scheme)
        return cls(id_, f"{scheme}://{parts.netloc}{prefix}")

    def __str__(self) -> str:
        return self.id if self.base is None else make_reference(self.base, self.id)


def make_reference(base: str, id: str) -> str:
    """Return the reference of resource ``id`` under the public base URL ``base``."""
    return f"{base.rstrip('/')}/r/{id}"
