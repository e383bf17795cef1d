import codecs
import itertools
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import EncodingError, InvalidArgument
from tailrace_impl_common._transcode import Transcoder

TEXT = "naïve – Ω → 日本語 𝄞\r\nzweite Zeile\n"
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(
    lambda text: not text.startswith("\ufeff")
)


def pieces_of(data: bytes, points: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def transcode(encoding: str, pieces: list[bytes], errors: Literal["strict", "replace"] = "strict") -> bytes:
    transcoder = Transcoder(encoding, errors=errors)
    return b"".join([transcoder.feed(piece) for piece in pieces]) + transcoder.finish()


POINTS = st.lists(st.integers(0, 200), max_size=12)


@given(
    text=ANY_TEXT,
    encoding=st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "gb18030", "utf-7"]),
    points=POINTS,
)
def test_any_text_in_any_pieces_comes_out_as_utf_8(text: str, encoding: str, points: list[int]) -> None:
    assert transcode(encoding, pieces_of(text.encode(encoding), points)) == text.encode()


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("shift_jis", "日本語 ﾊﾛｰ abc"),
        ("euc-jp", "日本語"),
        ("iso2022_jp", "日本語 and ASCII"),
        ("gb2312", "汉字"),
        ("cp1252", "naïve – €"),
        ("latin-1", "naïve"),
        ("cp037", "EBCDIC"),
        ("koi8-r", "привет"),
        ("ascii", "plain"),
    ],
)
def test_legacy_encodings_byte_by_byte(encoding: str, text: str) -> None:
    data = text.encode(encoding)
    assert transcode(encoding, [bytes([byte]) for byte in data]) == text.encode()


@given(text=ANY_TEXT, order=st.sampled_from(["le", "be"]), width=st.sampled_from(["16", "32"]), points=POINTS)
def test_the_mark_decides_the_byte_order(text: str, order: str, width: str, points: list[int]) -> None:
    data = f"\ufeff{text}".encode(f"utf-{width}-{order}")
    assert transcode(f"utf-{width}", pieces_of(data, points)) == text.encode()


@pytest.mark.parametrize("width", ["16", "32"])
def test_without_a_mark_the_order_is_little_endian(width: str) -> None:
    data = TEXT.encode(f"utf-{width}-le")
    assert transcode(f"utf-{width}", [bytes([byte]) for byte in data]) == TEXT.encode()


@given(text=ANY_TEXT, points=POINTS)
def test_utf_8_passes_unchanged_but_for_one_mark(text: str, points: list[int]) -> None:
    data = text.encode()
    assert transcode("utf-8", pieces_of(data, points)) == data
    assert transcode("utf-8", pieces_of(codecs.BOM_UTF8 + data, points)) == data
    assert transcode("utf-8-sig", pieces_of(codecs.BOM_UTF8 + data, points)) == data
    # Only the first is a mark; what follows is text.
    assert transcode("utf-8", pieces_of(codecs.BOM_UTF8 * 2 + data, points)) == codecs.BOM_UTF8 + data


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "gb18030"])
def test_a_mark_alone_is_no_bytes(encoding: str) -> None:
    name = {"utf-16": "utf-16-be", "utf-32": "utf-32-be"}.get(encoding, encoding)
    mark = "\ufeff".encode(name)
    assert transcode(encoding, [mark]) == b""
    assert transcode(encoding, [bytes([byte]) for byte in mark]) == b""
    assert transcode(encoding, []) == b""


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", codecs.BOM_UTF16_LE),
        ("utf-8", codecs.BOM_UTF16_BE),
        ("utf-8", codecs.BOM_UTF32_BE),
        ("latin-1", codecs.BOM_UTF8),
        ("cp1252", codecs.BOM_UTF16_LE),
        ("ascii", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_BE),
        ("utf-16-be", codecs.BOM_UTF16_LE),
        ("utf-16", codecs.BOM_UTF8),
        ("utf-32", codecs.BOM_UTF16_LE + b"ab"),
        ("utf-32-le", codecs.BOM_UTF32_BE),
        ("utf-32-be", codecs.BOM_UTF32_LE),
        ("shift_jis", codecs.BOM_UTF8),
    ],
)
def test_a_contradicting_mark_is_an_error(encoding: str, mark: bytes, errors: Literal["strict", "replace"]) -> None:
    data = mark + b"text"
    for pieces in ([data], [mark]):
        with pytest.raises(EncodingError, match="byte-order mark") as caught:
            transcode(encoding, pieces, errors)
        assert (caught.value.offset, caught.value.encoding) == (0, encoding)
    # Where nothing is held back, the mark's own bytes can be found invalid before the mark is complete.
    with pytest.raises(EncodingError):
        transcode(encoding, [bytes([byte]) for byte in data], errors)


def test_what_looks_like_a_longer_mark_is_text_of_the_named_encoding() -> None:
    assert transcode("utf-16-le", [codecs.BOM_UTF32_LE]) == b"\0"
    assert transcode("utf-16", [codecs.BOM_UTF32_LE]) == b"\0"


@given(points=POINTS)
@pytest.mark.parametrize(
    ("encoding", "data", "offset"),
    [
        ("utf-8", "aé".encode() + b"\xff" + b"rest", 3),
        ("utf-8", b"abc\xe2\x82", 3),
        ("utf-8", b"abc\xed\xa0\x80", 3),
        ("ascii", b"abcd\xc3", 4),
        ("utf-16-le", "ab".encode("utf-16-le") + b"\x00\xdcxy", 4),
        ("utf-16", codecs.BOM_UTF16_BE + "ab".encode("utf-16-be") + b"\x00", 6),
        ("shift_jis", "日本".encode("shift_jis") + b"\x81\x20", 4),
        ("cp1252", b"ab\x81", 2),
    ],
)
def test_invalid_input_names_its_offset_however_it_is_cut(
    encoding: str, data: bytes, offset: int, points: list[int]
) -> None:
    with pytest.raises(EncodingError) as caught:
        transcode(encoding, pieces_of(data, points))
    assert caught.value.offset == offset
    assert f"at byte {offset}" in str(caught.value)


@given(data=st.binary(max_size=40), encoding=st.sampled_from(["utf-8", "ascii", "utf-16-be", "cp1252"]), points=POINTS)
def test_replacing_agrees_with_the_codec_however_it_is_cut(data: bytes, encoding: str, points: list[int]) -> None:
    data = b"start".decode().encode(encoding) + data
    assert transcode(encoding, pieces_of(data, points), "replace") == data.decode(encoding, "replace").encode()


def test_halves_of_surrogate_pairs_are_invalid_in_every_encoding() -> None:
    data = b"a\\ud800b"
    with pytest.raises(EncodingError, match="surrogate"):
        transcode("raw_unicode_escape", [data])
    assert transcode("raw_unicode_escape", [data], "replace") == "a\ufffdb".encode()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16-le", "utf-16", "shift_jis", "utf-32-be"])
def test_every_complete_character_is_forwarded_at_once(encoding: str) -> None:
    transcoder = Transcoder(encoding)
    text = "\0ÿabc" if encoding == "latin-1" else "\0日abc" if encoding == "shift_jis" else "\0é日abc"
    name = "utf-16-le" if encoding == "utf-16" else encoding
    for character in text:
        *early, last = (bytes([byte]) for byte in character.encode(name))
        assert all(transcoder.feed(byte) == b"" for byte in early)
        assert transcoder.feed(last) == character.encode()
    assert transcoder.finish() == b""


def test_any_buffer_is_taken_and_text_is_not() -> None:
    transcoder = Transcoder("utf-8")
    assert transcoder.feed(memoryview("é1".encode())) + transcoder.feed(bytearray(b"2")) == "é12".encode()
    with pytest.raises(InvalidArgument):
        transcoder.feed("text")  # type: ignore[arg-type]  # what a user without types may do


@pytest.mark.parametrize("encoding", ["no-such-encoding", "base64", "rot13", "hex", "utf-8\0"])
def test_what_is_no_text_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Transcoder(encoding)
    assert caught.value.field == "encoding"


def test_the_choice_of_errors_is_checked() -> None:
    with pytest.raises(InvalidArgument):
        Transcoder("utf-8", errors="ignore")  # type: ignore[arg-type]  # the wrong value is the test
