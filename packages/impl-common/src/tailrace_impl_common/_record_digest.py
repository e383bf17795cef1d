"""The digest of a stream of records: whether what arrived is what was sent.

With ``‖`` for concatenation, and each part the 16 canonical bytes of an XXH3-128::

    data     of the data of all records, one behind the other
    lengths  of the length of each record's data, as 4 bytes big-endian
    keys     of each record's key: its length in bytes of UTF-8 as 4 bytes big-endian (0: none), then the key
    digest   XXH3-128(data ‖ lengths ‖ keys)

It depends on the records and their order alone, never on how they were cut into messages. The three parts are apart so
that a batch costs a few calls and not some for each record.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Self

from xxhash import xxh3_128, xxh3_128_digest

from tailrace_common_api import RecordBatch

_SWAPPED = sys.byteorder == "little"
_NO_KEY = bytes(4)


class RecordDigest:
    """Digest of the records so far; continues from any state, which can be copied."""

    __slots__ = ("_data", "_keys", "_lengths", "_records")

    def __init__(self) -> None:
        """Begin without any record."""
        self._data = xxh3_128()
        self._lengths = xxh3_128()
        self._keys = xxh3_128()
        self._records = 0

    @property
    def records(self) -> int:
        """How many records there were."""
        return self._records

    def update(self, batch: RecordBatch) -> None:
        """Take the next records."""
        data, keys = batch
        self._data.update(data[0] if len(data) == 1 else b"".join(data))
        lengths = array("I", map(len, data))
        if _SWAPPED:
            lengths.byteswap()
        self._lengths.update(lengths.tobytes())
        self._keys.update(_key_bytes(keys) if keys else _NO_KEY * len(data))
        self._records += len(data)

    def digest(self) -> bytes:
        """Return the digest of the records so far, 16 bytes; more can follow."""
        return xxh3_128_digest(self._data.digest() + self._lengths.digest() + self._keys.digest())

    def copy(self) -> Self:
        """Return a copy that goes on by itself."""
        other = type(self)()
        other._data, other._lengths, other._keys = self._data.copy(), self._lengths.copy(), self._keys.copy()
        other._records = self._records
        return other


def _key_bytes(keys: Sequence[str | None]) -> bytes:
    pieces = []
    for key in keys:
        if key:
            encoded = key.encode()
            pieces.append(len(encoded).to_bytes(4, "big"))
            pieces.append(encoded)
        else:
            pieces.append(_NO_KEY)
    return b"".join(pieces)
