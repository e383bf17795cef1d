from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from tailrace_common_api import TailraceError, WireValue, error_classes
from tailrace_impl_websocket import ERROR_TABLE, wire_status
from tailrace_impl_websocket._codec import Failure, close_reason, decode_from_server, encode_from_server

SAMPLES: dict[str, WireValue] = {
    "int": 2**53 - 1,
    "int | None": None,
    "float": 1.5,
    "str": "with \x1b control, ü and \U0001f600",
}
OF_FIELDS: dict[str, WireValue] = {
    # JSON in itself, which the error reads.
    "problems": '[[3,"duplicate","e-mail","with \\u001b control, \u00fc"]]',
}
CLASSES = sorted(error_classes(), key=lambda cls: cls.code)


def sample(cls: type[TailraceError]) -> TailraceError:
    """Build an error with a value for each of its attributes."""
    if not cls.fields:
        return cls("something is wrong: ü \x00")
    parameters = inspect.signature(cls).parameters
    build: Callable[..., TailraceError] = cls
    return build(**{name: OF_FIELDS.get(name, SAMPLES[parameters[name].annotation]) for name in cls.fields})


def test_table_has_each_code_and_no_other() -> None:
    assert set(ERROR_TABLE) == {cls.code for cls in CLASSES}


@pytest.mark.parametrize("status", ERROR_TABLE.values(), ids=list(ERROR_TABLE))
def test_close_codes_may_be_sent_and_http_statuses_are_errors(status: tuple[int, int]) -> None:
    close_code, http_status = status
    # 1004 to 1006 and 1015 must never be in a close frame (RFC 6455, section 7.4.1).
    assert 1000 < close_code < 1015
    assert close_code not in {1004, 1005, 1006}
    assert 400 <= http_status < 600


@pytest.mark.parametrize("request_number", [None, 7])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.code)
def test_error_travels_without_loss(cls: type[TailraceError], request_number: int | None) -> None:
    error = sample(cls)
    number, message = decode_from_server(encode_from_server(request_number, Failure(error)))
    assert number == request_number
    assert isinstance(message, Failure)
    assert type(message.error) is cls
    assert (message.error.message, message.error.details()) == (error.message, error.details())


def test_error_of_an_unknown_code_shows_as_a_defect() -> None:
    class Foreign(TailraceError):
        code = "foreign"

    try:
        assert wire_status(Foreign("x")) == ERROR_TABLE["internal"]
    finally:
        del Foreign


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", "short"),
        ("a" * 124, "a" * 123),
        # Two bytes each: the 62nd would end at byte 124.
        ("ü" * 100, "ü" * 61),
        ("a" + "\U0001f600" * 40, "a" + "\U0001f600" * 30),
        ("\ud800", "?"),
    ],
)
def test_close_reason_is_cut_on_a_code_point(text: str, expected: str) -> None:
    assert close_reason(text) == expected
    assert len(close_reason(text).encode()) <= 123
