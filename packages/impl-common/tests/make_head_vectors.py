"""Write head_vectors.json: heads computed from the definition, step by step, apart from the package's own code.

The resource of size n is the bytes ``i mod 251`` for i in [0, n). Run with ``python make_head_vectors.py``; a test
compares the file with what this gives.
"""

import json
import struct
from pathlib import Path

import xxhash

BLOCK = 131072
SIZES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 300000)
VECTORS = Path(__file__).with_name("head_vectors.json")


def pattern(size: int) -> bytes:
    return bytes(i % 251 for i in range(size))


def head_by_definition(data: bytes) -> dict[str, int | str]:
    full, rest = divmod(len(data), BLOCK)
    spine = bytes(16)
    for k in range(full):
        digest = bytes.fromhex(xxhash.xxh3_128_hexdigest(data[k * BLOCK : (k + 1) * BLOCK]))
        spine = bytes.fromhex(xxhash.xxh3_128_hexdigest(spine + digest))
    open_digest = bytes.fromhex(xxhash.xxh3_128_hexdigest(data[full * BLOCK :])) if rest else b""
    head = xxhash.xxh3_128_hexdigest(spine + open_digest + struct.pack("<Q", len(data)))
    return {
        "size": len(data),
        "blocks": full,
        "spine": spine.hex(),
        "open_digest": open_digest.hex(),
        "chunk_hash": chunk_hash_by_definition(data),
        "head": head,
    }


def chunk_hash_by_definition(data: bytes) -> str:
    if len(data) <= BLOCK:
        return xxhash.xxh3_64_hexdigest(data)
    digests = ""
    while data:
        digests += xxhash.xxh3_128_hexdigest(data[:BLOCK])
        data = data[BLOCK:]
    return xxhash.xxh3_64_hexdigest(bytes.fromhex(digests))


def vectors() -> dict[str, object]:
    return {
        "pattern": "byte i is i mod 251",
        "chunk_hash": "hash of a chunk that is the whole pattern",
        "vectors": [head_by_definition(pattern(size)) for size in SIZES],
    }


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=2) + "\n")
