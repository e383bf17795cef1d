"""Upload tokens."""

from __future__ import annotations

import hashlib
import hmac
import secrets


def new_token() -> str:
    """Return a new upload token: 256 random bits, URL-safe."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> bytes:
    """Return what is stored of a token: its SHA-256."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def token_matches(token: str | None, token_hash: bytes) -> bool:
    """Return whether ``token`` is the one whose hash is stored, in time that does not depend on where they differ."""
    return token is not None and hmac.compare_digest(hash_token(token), token_hash)
