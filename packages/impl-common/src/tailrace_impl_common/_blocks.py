"""Blocks of 128 KiB, what is hashed at once: the digest of a block, and the hash of a chunk, which is made of such."""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_64_digest, xxh3_128_digest

from tailrace_impl_common._buffers import Buffer

BLOCK_SIZE = 128 * 1024
"""Bytes of a block."""
DIGEST_SIZE = 16
"""Bytes of a block digest, of the spine and of a head."""
HASH_SIZE = 8
"""Bytes of a chunk's hash."""

# From 241 bytes on XXH3-64 is the lower half of XXH3-128, with the secret and the seed that both have by default.
_HALF_FROM = 241


def block_digest(data: Buffer) -> bytes:
    """Return the digest of a block with these bytes, 16 bytes."""
    return xxh3_128_digest(data)


def chunk_hash(data: Buffer, digests: Sequence[bytes] = ()) -> bytes:
    """Return the hash of a chunk with these bytes, 8 bytes.

    It is XXH3-64 of up to 128 KiB. A larger chunk is cut into parts of 128 KiB from its start, of which the last may be
    shorter, and its hash is XXH3-64 of their digests one behind the other. So who needs the digests of the blocks, too,
    hashes the bytes of a chunk that starts with a block only once.

    Args:
        data: The bytes, contiguous.
        digests: Digests of the first parts of it, as far as they are known.
    """
    length = len(data)
    if length <= BLOCK_SIZE:
        return digests[0][-HASH_SIZE:] if digests and length >= _HALF_FROM else xxh3_64_digest(data)
    view = memoryview(data)
    missing = range(len(digests) * BLOCK_SIZE, length, BLOCK_SIZE)
    parts = [*digests, *[xxh3_128_digest(view[start : start + BLOCK_SIZE]) for start in missing]]
    return xxh3_64_digest(b"".join(parts))
