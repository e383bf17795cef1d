"""What the headers of a call say and how they are written (gRPC over HTTP/2)."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

import grpc
from hpack import Decoder, HPACKError, OversizedHeaderListError

from tailrace_common_api import KIBIBYTE
from tailrace_impl_grpc._http2_layout import ConnectionOffence, ErrorCode

logger = logging.getLogger(__name__)

MAX_HEADER_LIST = 16 * KIBIBYTE
"""Bytes of the headers of a call, each counted with 32 bytes on top (RFC 9113, section 6.5.2)."""
MAX_HEADER_BLOCK = 64 * KIBIBYTE
"""Bytes of headers that are decoded at all, before and after: it takes long, and more would be refused anyway."""
_LARGEST_PLAIN, _MOST_PLAIN = 16 * KIBIBYTE, 64
"""Bytes and fields of blocks that are not left to the library: far below what it takes."""
_BINARY = "-bin"
_TIMEOUT_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MOST_TIMEOUT_DIGITS = 8
_NAME = re.compile(rb"[0-9a-z!#$%&'*+.^_`|~-]+")
_FORBIDDEN = re.compile(rb"[\0\r\n]")
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
# Headers of the protocol itself, which are no metadata.
_OWN = frozenset((b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"))
_ACCEPTED_ENCODINGS = "identity, deflate, gzip"
_PLAIN_TEXT = bytes(range(0x20, 0x7F)).replace(b"%", b"").decode()
"""What a ``grpc-message`` holds as it is."""

Fields = Sequence[tuple[bytes, bytes]]
"""Headers as they are on the wire."""
Metadata = tuple[tuple[str, str | bytes], ...]
"""What a call says beside its messages; values of names that end with ``-bin`` are bytes."""


class HeadersTooLarge(Exception):
    """Headers are too many to be decoded; what follows cannot be, either, since the tables are not the same now."""


class MalformedHeaders(Exception):
    """The headers break a rule of HTTP/2; their stream ends without an answer."""


class BadRequest(Exception):
    """The headers are no call of gRPC; said by a status of HTTP, since the client may not speak gRPC at all."""

    def __init__(self, http_status: int, code: grpc.StatusCode, problem: str) -> None:
        """Say why, to whoever speaks HTTP and to whoever speaks gRPC."""
        super().__init__(problem)
        self.http_status = http_status
        self.code = code
        self.problem = problem


@dataclass(frozen=True, slots=True)
class CallHeaders:
    """What the headers of a call say."""

    path: str
    """Of the method, ``/service/method``."""
    metadata: Metadata
    """Values of names that end with ``-bin`` are bytes."""
    timeout: float | None
    """Time for the call, in seconds."""
    encoding: str
    """How messages are compressed that say that they are."""
    accepts_gzip: bool
    """Whether the client takes messages that are compressed with gzip."""


class HeaderDecoder:
    """Decodes the header blocks of one connection, in order."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_HEADER_BLOCK)

    def decode(self, block: bytes) -> Fields:
        """Return names and values.

        Raises:
            ConnectionOffence: They cannot be decoded.
            HeadersTooLarge: There is more than is ever decoded.
        """
        if len(block) > MAX_HEADER_BLOCK:
            raise HeadersTooLarge
        plain = _plain_fields(block)
        if plain is not None:
            return plain
        try:
            return [(name, value) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError:
            raise HeadersTooLarge from None
        except HPACKError:
            raise ConnectionOffence(ErrorCode.COMPRESSION_ERROR, "headers cannot be decoded") from None


def _plain_fields(block: bytes) -> Fields | None:
    """Return names and values of a block as it is written here, which neither depends on a table nor changes one.

    ``None`` if anything in it is spelled otherwise: that is for the library, which takes several times as long.
    """
    fields: list[tuple[bytes, bytes]] = []
    position, end = 0, len(block)
    if end > _LARGEST_PLAIN:
        return None
    try:
        while position < end and len(fields) < _MOST_PLAIN:
            kind = block[position]
            position += 1
            if kind:
                fields.append(_PLAIN_INDEXED[kind])
                continue
            name, position = _plain_text(block, position)
            value, position = _plain_text(block, position)
            fields.append((name, value))
    except LookupError:
        return None
    return fields if position == end else None


def _plain_text(block: bytes, position: int) -> tuple[bytes, int]:
    """Return the text whose length is at ``position``, and where it ends; see :func:`_length`.

    Raises:
        LookupError: It is compressed, cut off, or has a length of more bytes than any that is taken.
    """
    size = block[position]
    start = position + 1
    if size >= _LONG:
        low, start = block[start], start + 1
        size += low & 127
        if low > 127:
            high, start = block[start], start + 1
            size += high << 7
    end = start + size
    if block[position] > _LONG or end > len(block):
        raise LookupError
    return block[start:end], end


def parse_request_headers(headers: Fields) -> CallHeaders:
    """Return what the headers of a call say.

    Raises:
        BadRequest: They are no call of gRPC.
        MalformedHeaders: They break a rule of HTTP/2.
    """
    size = 0
    special: dict[bytes, bytes] = {}
    regular = False
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        size += len(name) + len(value) + 32
        if name.startswith(b":"):
            if regular or name in special or name not in _PSEUDO:
                raise MalformedHeaders(name)
            special[name] = value
            continue
        regular = True
        if not _NAME.fullmatch(name) or _FORBIDDEN.search(value):
            raise MalformedHeaders(name)
        if name in _OWN:
            special[name] = value
        else:
            metadata += _entries(name.decode("ascii"), value)
    if not special.get(b":path"):
        raise MalformedHeaders(b":path")
    if size > MAX_HEADER_LIST:
        raise BadRequest(200, grpc.StatusCode.RESOURCE_EXHAUSTED, f"metadata above {MAX_HEADER_LIST} bytes")
    if special.get(b":method") != b"POST":
        raise BadRequest(405, grpc.StatusCode.INTERNAL, "calls of gRPC are POST requests")
    if not _is_grpc(special.get(b"content-type", b"")):
        raise BadRequest(415, grpc.StatusCode.INTERNAL, "the content type of calls is application/grpc")
    return CallHeaders(
        path=special.get(b":path", b"").decode("latin-1"),
        metadata=tuple(metadata),
        timeout=_timeout(special.get(b"grpc-timeout")),
        encoding=special.get(b"grpc-encoding", b"identity").decode("latin-1"),
        accepts_gzip=b"gzip" in special.get(b"grpc-accept-encoding", b""),
    )


@dataclass(frozen=True, slots=True)
class CallStatus:
    """How a call has ended."""

    code: grpc.StatusCode
    details: str = ""
    metadata: Metadata = ()


def request_headers(
    path: str, authority: str, metadata: Metadata, *, secure: bool, compressed: bool, timeout: float | None
) -> bytes:
    """Return the block of headers that begins a call."""
    parts = [
        _POST_HTTPS if secure else _POST_HTTP,
        _literal(":path", path),
        _literal(":authority", authority),
        _REQUEST_HEADERS,
    ]
    if timeout is not None:
        parts.append(_literal("grpc-timeout", f"{min(max(1, round(timeout * 1000)), 10**_MOST_TIMEOUT_DIGITS - 1)}m"))
    if compressed:
        parts.append(_literal("grpc-encoding", "gzip"))
    parts.append(_metadata(metadata))
    return b"".join(parts)


def parse_response_headers(fields: Fields) -> tuple[CallStatus | None, str]:
    """Return the status in the headers of an answer, if they are its last or not of gRPC, and its encoding."""
    found = dict(fields)
    http_status = found.get(b":status", b"").decode("latin-1")
    if b"grpc-status" in found:
        return parse_trailers(fields), ""
    if http_status != "200":
        code = _STATUS_OF_HTTP.get(http_status, grpc.StatusCode.UNKNOWN)
        return CallStatus(code, f"Received http2 header with status: {http_status}"), ""
    if not _is_grpc(found.get(b"content-type", b"")):
        return CallStatus(grpc.StatusCode.UNKNOWN, "the answer is not of gRPC"), ""
    return None, found.get(b"grpc-encoding", b"identity").decode("latin-1")


def parse_trailers(fields: Fields) -> CallStatus:
    """Return the status in the last headers of an answer."""
    number, details = -1, ""
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name == b"grpc-status":
            number = int(value) if value.isdigit() and len(value) < 4 else -1
        elif name == b"grpc-message":
            details = unquote_to_bytes(value).decode("utf-8", "replace")
        elif not name.startswith(b":") and name not in _OWN:
            try:
                metadata += _entries(name.decode("latin-1"), value)
            except BadRequest:
                # What nobody can read; the status is there.
                continue
    return CallStatus(_CODES.get(number, grpc.StatusCode.UNKNOWN), details, tuple(metadata))


def response_headers(*, compressed: bool, metadata: Metadata = ()) -> bytes:
    """Return the block of headers before the first message."""
    block = _COMPRESSED_HEADERS if compressed else _HEADERS
    return block + _metadata(metadata) if metadata else block


def trailers(code: grpc.StatusCode, details: str, metadata: Metadata, *, alone: bool) -> bytes:
    """Return the block of headers behind the last message; ``alone`` if there were none before."""
    number: int = code.value[0]
    begin = _HEADERS if alone else b""
    if not number and not details and not metadata:
        return begin + _OK
    parts = [begin, _literal("grpc-status", str(number))]
    if details:
        parts.append(_literal("grpc-message", quote_from_bytes(details.encode("utf-8", "replace"), safe=_PLAIN_TEXT)))
    parts.append(_metadata(metadata))
    return b"".join(parts)


def refusal(problem: BadRequest) -> bytes:
    """Return the block of headers that answers what is no call."""
    return b"".join(
        (
            _literal(":status", str(problem.http_status)),
            _literal("content-type", "application/grpc"),
            _literal("grpc-status", str(problem.code.value[0])),
            _literal("grpc-message", problem.problem),
        )
    )


def _metadata(metadata: Metadata) -> bytes:
    return b"".join(_literal(key, _binary(value) if isinstance(value, bytes) else value) for key, value in metadata)


def _literal(name: str, value: str) -> bytes:
    """Return a header that touches no table (RFC 7541, section 6.2.2): it is the same on every connection."""
    key, content = name.encode("ascii"), value.encode()
    return b"".join((b"\x00", _length(len(key)), key, _length(len(content)), content))


def _length(value: int) -> bytes:
    """Return the length of a text that is not compressed (RFC 7541, section 5.1, with a prefix of seven bits)."""
    if value < 127:
        return bytes((value,))
    encoded = bytearray((127,))
    value -= 127
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_HEADERS = b"".join(
    (
        _literal(":status", "200"),
        _literal("content-type", "application/grpc"),
        _literal("grpc-accept-encoding", _ACCEPTED_ENCODINGS),
    )
)
_COMPRESSED_HEADERS = _HEADERS + _literal("grpc-encoding", "gzip")
_OK = _literal("grpc-status", "0")
# Entries of the table that both sides begin with (RFC 7541, appendix A).
_POST_HTTP, _POST_HTTPS = b"\x83\x86", b"\x83\x87"
_PLAIN_INDEXED = {0x83: (b":method", b"POST"), 0x86: (b":scheme", b"http"), 0x87: (b":scheme", b"https")}
_LONG = 127
"""What stands in the place of a length that follows, where it is not compressed (RFC 7541, section 5.1)."""
_REQUEST_HEADERS = b"".join(
    (
        _literal("te", "trailers"),
        _literal("content-type", "application/grpc"),
        _literal("user-agent", "grpc-python-tailrace"),
        _literal("grpc-accept-encoding", _ACCEPTED_ENCODINGS),
    )
)
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
# What stands between client and server may answer by itself.
_STATUS_OF_HTTP = {
    "400": grpc.StatusCode.INTERNAL,
    "401": grpc.StatusCode.UNAUTHENTICATED,
    "403": grpc.StatusCode.PERMISSION_DENIED,
    "404": grpc.StatusCode.UNIMPLEMENTED,
    "429": grpc.StatusCode.UNAVAILABLE,
    "502": grpc.StatusCode.UNAVAILABLE,
    "503": grpc.StatusCode.UNAVAILABLE,
    "504": grpc.StatusCode.UNAVAILABLE,
}


def _entries(key: str, value: bytes) -> list[tuple[str, str | bytes]]:
    if not key.endswith(_BINARY):
        try:
            return [(key, value.decode())]
        except UnicodeDecodeError:
            # It may be a token: nothing more is said.
            logger.info("metadata of a call is not UTF-8")
            return []
    # Several values of one name may come as one.
    try:
        parts = [part.strip() for part in value.split(b",")]
        return [(key, base64.b64decode(part + b"=" * (-len(part) % 4), validate=True)) for part in parts]
    except binascii.Error:
        raise BadRequest(200, grpc.StatusCode.INTERNAL, f"the value of {key[:64]} is not in Base64") from None


def _binary(value: bytes) -> str:
    return base64.b64encode(value).rstrip(b"=").decode()


def _is_grpc(content_type: bytes) -> bool:
    return content_type.startswith(b"application/grpc") and content_type[16:17] in (b"", b"+", b";")


def _timeout(text: bytes | None) -> float | None:
    if text is None:
        return None
    digits, unit = text[:-1], text[-1:].decode("latin-1")
    if not digits.isdigit() or len(digits) > _MOST_TIMEOUT_DIGITS or unit not in _TIMEOUT_UNITS:
        raise BadRequest(200, grpc.StatusCode.INTERNAL, "grpc-timeout is not a number and its unit")
    return int(digits) * _TIMEOUT_UNITS[unit]
