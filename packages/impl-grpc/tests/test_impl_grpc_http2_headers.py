"""What the headers of calls mean, and how answers are written, against the library hpack."""

from __future__ import annotations

import base64
import logging
from urllib.parse import unquote

import grpc
import pytest
from hpack import Decoder, Encoder, HPACKError
from hpack.struct import HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given
from hypothesis import strategies as st

from tailrace_impl_grpc._http2_headers import (
    MAX_HEADER_BLOCK,
    MAX_HEADER_LIST,
    BadRequest,
    CallHeaders,
    HeaderDecoder,
    HeadersTooLarge,
    MalformedHeaders,
    Metadata,
    _plain_fields,
    parse_request_headers,
    refusal,
    request_headers,
    response_headers,
    trailers,
)
from tailrace_impl_grpc._http2_layout import ConnectionOffence, ErrorCode

Fields = list[tuple[bytes, bytes]]

SPECIAL: Fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b":authority", b"here")]
OWN: Fields = [(b"te", b"trailers"), (b"content-type", b"application/grpc")]


def parsed(*more: tuple[bytes, bytes]) -> CallHeaders:
    """Parse the headers of a good call and some more."""
    return parse_request_headers([*SPECIAL, *OWN, *more])


def refused(*more: tuple[bytes, bytes]) -> BadRequest:
    with pytest.raises(BadRequest) as raised:
        parsed(*more)
    return raised.value


def with_values(**values: bytes) -> Fields:
    """Return the headers of a call with other values, or without those that are empty."""
    changed = {name.replace("_", "-").encode(): value for name, value in values.items()}
    fields = [(name, changed.get(name.lstrip(b":"), value)) for name, value in [*SPECIAL, *OWN]]
    return [(name, value) for name, value in fields if value]


def read(block: bytes) -> list[tuple[str, str]]:
    """Decode a block as an independent client does."""
    found: list[tuple[str, str]] = []
    for name, value in Decoder(max_header_list_size=1 << 20).decode(block):
        # The library's types say bytes, whatever was asked for.
        found.append((str(name), str(value)))
    return found


# Calls


def test_a_call_says_what_it_wants() -> None:
    headers = parsed(
        (b"grpc-timeout", b"2S"),
        (b"grpc-encoding", b"gzip"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
        (b"user-agent", b"one"),
        (b"key", "grün".encode()),
        (b"key", b"again"),
    )
    assert headers == CallHeaders(
        path="/a.B/C",
        metadata=(("user-agent", "one"), ("key", "grün"), ("key", "again")),
        timeout=2.0,
        encoding="gzip",
        accepts_gzip=True,
    )


def test_a_call_need_not_say_much() -> None:
    assert parsed() == CallHeaders(path="/a.B/C", metadata=(), timeout=None, encoding="identity", accepts_gzip=False)


@pytest.mark.parametrize("size", range(7))
def test_binary_metadata_is_read_with_and_without_padding(size: int) -> None:
    data = bytes(range(0xFD, 0xFD + 3)) * 2 + bytes(range(size))
    text = base64.b64encode(data)
    expected = (("some-bin", data),)
    assert parsed((b"some-bin", text)).metadata == expected
    assert parsed((b"some-bin", text.rstrip(b"="))).metadata == expected


def test_an_empty_binary_value_is_one() -> None:
    assert parsed((b"some-bin", b"")).metadata == (("some-bin", b""),)


def test_several_binary_values_may_come_as_one() -> None:
    metadata = parsed((b"some-bin", b"YQ==,YmI,Y2Nj"), (b"some-bin", b"ZA")).metadata
    assert metadata == (("some-bin", b"a"), ("some-bin", b"bb"), ("some-bin", b"ccc"), ("some-bin", b"d"))


@pytest.mark.parametrize("text", [b"!", b"Y", b"Y Q", b"Y\xff==", b"YQ==YQ==", b"YWJj,?"])
def test_binary_metadata_that_is_not_base64_is_refused(text: bytes) -> None:
    problem = refused((b"some-bin", text))
    assert (problem.http_status, problem.code) == (200, grpc.StatusCode.INTERNAL)
    assert "some-bin" in problem.problem


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"post", b""])
def test_only_post_calls(method: bytes) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_request_headers(with_values(method=method))
    assert raised.value.http_status == 405


@pytest.mark.parametrize(
    "content_type", [b"", b"text/html", b"application/json", b"application/grpcx", b"application/grpc-web"]
)
def test_other_content_types_are_refused(content_type: bytes) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_request_headers(with_values(content_type=content_type))
    assert raised.value.http_status == 415


@pytest.mark.parametrize(
    "content_type",
    [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8", b"application/grpc+json"],
)
def test_content_types_of_grpc_are_taken(content_type: bytes) -> None:
    assert parse_request_headers(with_values(content_type=content_type)).path == "/a.B/C"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"2H", 7200.0),
        (b"3M", 180.0),
        (b"4S", 4.0),
        (b"50m", 0.05),
        (b"600u", 0.0006),
        (b"7000n", 0.000007),
        (b"0S", 0.0),
        (b"99999999H", 99_999_999 * 3600.0),
    ],
)
def test_every_unit_of_time_is_known(text: bytes, seconds: float) -> None:
    assert parsed((b"grpc-timeout", text)).timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [b"", b"S", b"1", b"1s", b"-1S", b"+1S", b"1.5S", b"1 S", b" 1S", b"123456789S", b"\xb2S", b"1\xff", b"1_0S"],
)
def test_malformed_timeouts_are_refused(text: bytes) -> None:
    problem = refused((b"grpc-timeout", text))
    assert (problem.http_status, problem.code) == (200, grpc.StatusCode.INTERNAL)


def test_metadata_up_to_the_limit_are_taken_and_no_byte_more() -> None:
    used = sum(len(name) + len(value) + 32 for name, value in [*SPECIAL, *OWN])
    room = MAX_HEADER_LIST - used - 32 - len(b"key")
    assert parsed((b"key", bytes([0x61]) * room)).metadata == (("key", "a" * room),)
    problem = refused((b"key", bytes([0x61]) * (room + 1)))
    assert (problem.http_status, problem.code) == (200, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_many_small_metadata_count_with_what_they_cost() -> None:
    assert refused(*[(b"k", b"")] * 600).code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("name", [b"Key", b"KEY", b"", b"a b", b"a:b", b"a\nb", b"a\0", "ä".encode()])
def test_names_that_http2_does_not_have_are_malformed(name: bytes) -> None:
    with pytest.raises(MalformedHeaders):
        parsed((name, b"value"))


@pytest.mark.parametrize("value", [b"a\nb", b"a\rb", b"a\0b", b"\n"])
@pytest.mark.parametrize("name", [b"key", b"key-bin", b"grpc-timeout"])
def test_bytes_that_end_lines_are_malformed_in_values(name: bytes, value: bytes) -> None:
    with pytest.raises(MalformedHeaders):
        parsed((name, value))


@pytest.mark.parametrize("name", [b":method", b":path", b":scheme", b":authority"])
def test_a_pseudo_header_comes_once(name: bytes) -> None:
    with pytest.raises(MalformedHeaders):
        parse_request_headers([*SPECIAL, (name, dict(SPECIAL)[name]), *OWN])


@pytest.mark.parametrize("before", [(b"key", b"value"), (b"te", b"trailers"), (b"key", b"\xff")])
def test_pseudo_headers_come_before_all_others(before: tuple[bytes, bytes]) -> None:
    with pytest.raises(MalformedHeaders):
        parse_request_headers([*SPECIAL[:3], before, SPECIAL[3], *OWN])


@pytest.mark.parametrize("name", [b":status", b":other", b":"])
def test_pseudo_headers_that_requests_do_not_have_are_malformed(name: bytes) -> None:
    with pytest.raises(MalformedHeaders):
        parse_request_headers([*SPECIAL, (name, b"200"), *OWN])


def test_a_value_that_is_not_utf8_is_dropped_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        headers = parsed((b"authorization", b"secret\xff"), (b"key", b"value"))
    assert headers.metadata == (("key", "value"),)
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text
    assert "secret" not in repr(caplog.records[0].__dict__)


# Answers


def test_the_first_headers_say_what_comes() -> None:
    assert read(response_headers(compressed=False)) == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity, deflate, gzip"),
    ]
    assert ("grpc-encoding", "gzip") in read(response_headers(compressed=True))


def test_initial_metadata_are_behind_the_first_headers() -> None:
    metadata: Metadata = (("key", "grün"), ("some-bin", b"\0\xff"), ("key", "again"))
    plain = read(response_headers(compressed=False))
    assert read(response_headers(compressed=False, metadata=metadata)) == [
        *plain,
        ("key", "grün"),
        ("some-bin", "AP8"),
        ("key", "again"),
    ]


def test_a_call_that_succeeds_says_so_and_nothing_else() -> None:
    assert read(trailers(grpc.StatusCode.OK, "", (), alone=False)) == [("grpc-status", "0")]


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_a_status_alone_has_the_first_headers_before_it(code: grpc.StatusCode) -> None:
    first = read(response_headers(compressed=False))
    assert read(trailers(code, "", (), alone=True)) == [*first, ("grpc-status", str(code.value[0]))]


@pytest.mark.parametrize(
    ("details", "written"),
    [
        ("plain words, as they are: ~!#&'()*+/?@[]^`{|}", "plain words, as they are: ~!#&'()*+/?@[]^`{|}"),
        ("100%", "100%25"),
        ("two\nlines\r", "two%0Alines%0D"),
        ("\0\t\x7f", "%00%09%7F"),
        ("grün €", "gr%C3%BCn %E2%82%AC"),
        ("\U0001f600", "%F0%9F%98%80"),
        ("%0A", "%250A"),
    ],
)
def test_details_are_percent_encoded(details: str, written: str) -> None:
    [(_, number), (name, value)] = read(trailers(grpc.StatusCode.ABORTED, details, (), alone=False))
    assert (number, name, value) == ("10", "grpc-message", written)
    assert unquote(value) == details


def test_details_that_no_text_can_hold_are_said_as_far_as_they_can_be() -> None:
    [_, (_, value)] = read(trailers(grpc.StatusCode.ABORTED, "a\udc80b", (), alone=False))
    assert unquote(value) == "a?b"


def test_trailing_metadata_are_said_of_good_calls_too() -> None:
    metadata: Metadata = (("some-bin", b"\xfb\xff"), ("empty-bin", b""), ("key", ""))
    assert read(trailers(grpc.StatusCode.OK, "", metadata, alone=False)) == [
        ("grpc-status", "0"),
        # No padding, and the alphabet of RFC 4648, section 4.
        ("some-bin", "+/8"),
        ("empty-bin", ""),
        ("key", ""),
    ]


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 253, 254, 255, 256, 382, 383, 16_383, 16_510, 16_511, 70_000])
def test_lengths_of_all_kinds_are_written(size: int) -> None:
    assert read(trailers(grpc.StatusCode.OK, "", (("k", "v" * size),), alone=False))[1:] == [("k", "v" * size)]
    name = "k" * (size or 1)
    assert read(trailers(grpc.StatusCode.OK, "", ((name, "v"),), alone=False))[1:] == [(name, "v")]


def test_what_is_no_call_is_answered_to_http_and_to_grpc() -> None:
    assert read(refusal(BadRequest(415, grpc.StatusCode.INTERNAL, "why"))) == [
        (":status", "415"),
        ("content-type", "application/grpc"),
        ("grpc-status", "13"),
        ("grpc-message", "why"),
    ]


# Blocks


def test_blocks_of_a_connection_are_decoded_in_order() -> None:
    encoder, decoder = Encoder(), HeaderDecoder()
    fields: list[HeaderTuple] = [HeaderTuple(b"key", b"value"), NeverIndexedHeaderTuple(b"token", b"\xff\0")]
    first, second = encoder.encode(fields), encoder.encode(fields)
    # The second one refers to the first.
    assert len(second) < len(first)
    assert decoder.decode(first) == decoder.decode(second) == [(b"key", b"value"), (b"token", b"\xff\0")]


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x80", id="index 0"),
        pytest.param(b"\xff\x80\x80\x01", id="no such index"),
        pytest.param(b"\xff" * 20, id="endless number"),
        pytest.param(b"\x00\x05ab", id="cut off"),
        pytest.param(b"\x00\x01a\x81\x00", id="no code of Huffman's"),
        pytest.param(b"\x00\x01a\x84\xff\xff\xff\xff", id="end of string within one"),
        pytest.param(b"\x3f\xe2\x1f", id="table above what was allowed"),
        pytest.param(b"\x82\x20", id="size of the table behind a header"),
        pytest.param(b"\x40", id="only a beginning"),
    ],
)
def test_blocks_that_cannot_be_decoded_end_the_connection(block: bytes) -> None:
    with pytest.raises(ConnectionOffence) as raised:
        HeaderDecoder().decode(block)
    assert raised.value.code is ErrorCode.COMPRESSION_ERROR


def test_a_small_block_that_says_very_much_is_not_decoded() -> None:
    # One entry of the table, said again and again: one byte each.
    block = b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 1000
    with pytest.raises(HeadersTooLarge):
        HeaderDecoder().decode(block)


def test_more_than_a_call_may_have_can_be_decoded_up_to_a_limit() -> None:
    block = trailers(grpc.StatusCode.OK, "", (("k", "v" * (MAX_HEADER_BLOCK - 100)),), alone=False)
    assert [name for name, _ in HeaderDecoder().decode(block)] == [b"grpc-status", b"k"]
    block = trailers(grpc.StatusCode.OK, "", (("k", "v" * MAX_HEADER_BLOCK),), alone=False)
    with pytest.raises(HeadersTooLarge):
        HeaderDecoder().decode(block)


# Blocks without a table


def by_the_library(block: bytes) -> Fields | None:
    """Decode a block on a new connection; ``None`` if it is malformed, or changes what is known for the next one."""
    decoder = Decoder(max_header_list_size=MAX_HEADER_BLOCK)
    try:
        fields = [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except HPACKError:
        return None
    untouched = not decoder.header_table.dynamic_entries and decoder.header_table.maxsize == 4096
    return fields if untouched else None


def written_here(*, token: str = "", secure: bool = False, compressed: bool = False) -> bytes:
    metadata = (("authorization", token), ("trace-bin", b"\0\1"))
    return request_headers("/a.B/C", "here:1", metadata, secure=secure, compressed=compressed, timeout=1.5)


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 4000, 15000])
@pytest.mark.parametrize("secure", [False, True])
def test_what_a_client_writes_is_read_without_the_library(size: int, secure: bool) -> None:
    block = written_here(token="t" * size, secure=secure, compressed=size > 200)
    fields = _plain_fields(block)
    assert fields is not None
    assert (b"authorization", b"t" * size) in fields
    assert fields == by_the_library(block)


@pytest.mark.parametrize(
    "block",
    [
        response_headers(compressed=False),
        response_headers(compressed=True, metadata=(("a", "b"),)),
        trailers(grpc.StatusCode.OK, "", (), alone=False),
        trailers(grpc.StatusCode.NOT_FOUND, "nothing there: ä", (("error-bin", b"\xff" * 300),), alone=True),
    ],
)
def test_what_a_server_writes_is_read_without_the_library(block: bytes) -> None:
    assert _plain_fields(block) == by_the_library(block) is not None


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x40\x01a\x01b", id="kept in the table"),
        pytest.param(b"\xbe", id="of the table"),
        pytest.param(b"\x20", id="size of the table"),
        pytest.param(b"\x10\x01a\x01b", id="never kept"),
        pytest.param(b"\x00\x01a\x81\x1f", id="Huffman"),
        pytest.param(b"\x00\x01a\x05b", id="cut off"),
        pytest.param(b"\x00\x01a", id="without a value"),
        pytest.param(b"\x00\x01a\x7f\x80\x80\x01", id="a long length"),
        pytest.param(b"\x83" * 65, id="many"),
        pytest.param(b"\x00\x01a\x7f\x81\x7f" + bytes(16384), id="large"),
    ],
)
def test_any_other_spelling_is_left_to_the_library(block: bytes) -> None:
    assert _plain_fields(block) is None


@given(at=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 300), more=st.binary(max_size=6))
def test_whatever_is_read_without_the_library_is_what_it_reads(at: int, value: int, cut: int, more: bytes) -> None:
    block = bytearray(written_here(token="t" * 130))
    block[at % len(block)] = value
    changed = bytes(block[:cut]) + more
    fields = _plain_fields(changed)
    assert fields is None or fields == by_the_library(changed)


def test_what_is_read_without_the_library_leaves_its_table_alone() -> None:
    encoder, decoder = Encoder(), HeaderDecoder()
    first = encoder.encode([(b"kept", b"value")])
    assert decoder.decode(first) == [(b"kept", b"value")]
    assert (b":path", b"/a.B/C") in decoder.decode(written_here())
    assert decoder.decode(encoder.encode([(b"kept", b"value")])) == [(b"kept", b"value")]
