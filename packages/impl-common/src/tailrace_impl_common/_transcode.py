"""Text in any encoding to UTF-8, piece by piece."""

from __future__ import annotations

import codecs
import re
from typing import Literal

from tailrace_common_api import EncodingError, InvalidArgument
from tailrace_impl_common._buffers import Buffer, flat

# The longer ones first: the mark of UTF-32 little-endian starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
)
_LONGEST_MARK = 4
# Encodings whose byte order the mark decides, with the order that holds without one, as the WHATWG has it for UTF-16.
_UNORDERED = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}
_MARK_CHARACTER = "\ufeff"
_SURROGATES = re.compile("[\ud800-\udfff]")
# In these, bytes below 128 are the same in UTF-8, whatever came before once no character is open.
_ASCII_TRANSPARENT = frozenset({"utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252"})


class Transcoder:
    """Turns one text from its encoding into UTF-8 as it comes.

    A byte-order mark of the encoding itself is removed, once and at the start only; one of another encoding is an
    error, with either choice of ``errors``. Nothing is held back but an incomplete character.
    """

    __slots__ = (
        "_codec",
        "_decoder",
        "_encoding",
        "_errors",
        "_marks",
        "_received",
        "_start",
        "_started",
        "_unordered",
    )

    def __init__(self, encoding: str, *, errors: Literal["strict", "replace"] = "strict") -> None:
        """Start a text.

        Args:
            encoding: Name of a text encoding that Python knows. ``utf-16`` and ``utf-32`` take their byte order from
                the mark, and are little-endian without one.
            errors: What invalid input does: ``strict`` raises, ``replace`` puts U+FFFD in its place.

        Raises:
            InvalidArgument: There is no such text encoding, or it cannot be decoded piece by piece.
        """
        if errors not in ("strict", "replace"):
            raise InvalidArgument(field="errors", problem=f"{errors!a} is neither 'strict' nor 'replace'")
        self._codec = _normal_name(encoding)
        self._encoding = encoding
        self._errors = errors
        self._unordered = self._codec in _UNORDERED
        prefix = self._codec + "-"
        self._marks = {
            mark: name for mark, name in _MARKS if name == self._codec or (self._unordered and name.startswith(prefix))
        }
        self._decoder = _decoder(_UNORDERED.get(self._codec, self._codec), errors)
        self._start: bytes | None = b""  # The first bytes, until it is clear that no mark contradicts.
        self._started = False  # Whether a character has been decoded, so that a mark can no longer come.
        self._received = 0

    @property
    def encoding(self) -> str:
        """The encoding of the input, as it was named."""
        return self._encoding

    def feed(self, data: Buffer) -> bytes:
        """Take the next bytes of the input and return the UTF-8 of every character that is complete.

        Raises:
            EncodingError: The input is invalid (``strict``), or starts with the byte-order mark of another encoding.
                The transcoder is of no use afterwards.
            InvalidArgument: ``data`` is no contiguous bytes-like object.
        """
        piece = bytes(flat(data))
        if self._start is not None:
            self._look_for_mark(piece, final=False)
        if self._unordered and not (piece := self._settle_order(piece, final=False)):
            return b""
        return self._decode(piece, final=False)

    def finish(self) -> bytes:
        """End the input and return what is left of the output.

        Raises:
            EncodingError: The input ends within a character (``strict``), or is nothing but the byte-order mark of
                another encoding.
        """
        if self._start is not None:
            self._look_for_mark(b"", final=True)
        return self._decode(self._settle_order(b"", final=True) if self._unordered else b"", final=True)

    def _look_for_mark(self, piece: bytes, *, final: bool) -> None:
        start = ((self._start or b"") + piece)[:_LONGEST_MARK]
        self._start = None if len(start) == _LONGEST_MARK or final else start
        if any(start.startswith(mark) for mark in self._marks):
            self._start = None
            return
        if not final and any(mark.startswith(start) for mark in self._marks):
            return
        for mark, name in _MARKS:
            if start.startswith(mark):
                raise EncodingError(
                    encoding=self._encoding, offset=0, problem=f"it starts with the byte-order mark of {name.upper()}"
                )

    def _settle_order(self, piece: bytes, *, final: bool) -> bytes:
        """Choose the byte order from the first character; return the bytes that can be decoded."""
        # Until the order is known the decoder has got nothing, and _received counts nothing.
        held = self._decoder.getstate()[0] + piece
        if len(held) < len(next(iter(self._marks))) and not final:
            self._decoder.setstate((held, 0))
            return b""
        self._unordered = False
        for mark, name in self._marks.items():
            if held.startswith(mark):
                self._decoder = _decoder(name, self._errors)
                return held
        self._decoder.reset()
        return held

    def _decode(self, piece: bytes, *, final: bool) -> bytes:
        pending = len(self._decoder.getstate()[0])
        if self._started and not pending and self._codec in _ASCII_TRANSPARENT and piece.isascii():
            self._received += len(piece)
            return piece
        try:
            text = self._decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            offset = self._received - pending + error.start
            raise EncodingError(encoding=self._encoding, offset=offset, problem=error.reason) from error
        if text and not self._started:
            self._started = True
            text = text.removeprefix(_MARK_CHARACTER)
        try:
            output = text.encode()
        except UnicodeEncodeError as error:
            # A few decoders let halves of surrogate pairs through, which are no characters.
            if self._errors == "strict":
                problem = "half of a surrogate pair"
                offset = self._received - pending
                raise EncodingError(encoding=self._encoding, offset=offset, problem=problem) from error
            output = _SURROGATES.sub("\ufffd", text).encode()
        self._received += len(piece)
        return output


def _normal_name(encoding: str) -> str:
    try:
        info = codecs.lookup(encoding)
    except (LookupError, ValueError) as error:
        raise InvalidArgument(field="encoding", problem=f"{encoding!a} is no known encoding") from error
    # The attribute by which str.encode itself tells text encodings from transforms such as base64.
    if not getattr(info, "_is_text_encoding", True) or info.incrementaldecoder is None:
        problem = f"{encoding!a} is no encoding of text that can be read piece by piece"
        raise InvalidArgument(field="encoding", problem=problem)
    return "utf-8" if info.name == "utf-8-sig" else info.name


def _decoder(codec: str, errors: str) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder(codec)(errors)
