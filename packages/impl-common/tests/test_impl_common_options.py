from __future__ import annotations

import pytest

from tailrace_common_api import ConfigurationError
from tailrace_impl_common import check_option_names, flag_option, is_loopback


def test_unknown_option_is_named_with_the_known_ones() -> None:
    check_option_names({"a": "1"}, ("a", "b"))
    with pytest.raises(ConfigurationError, match="unknown option 'c'; known are a, b"):
        check_option_names({"a": "1", "c": "2"}, ("a", "b"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("Yes", True),
        ("ON", True),
        ("1", True),
        ("false", False),
        ("no", False),
        ("Off", False),
        ("0", False),
    ],
)
def test_flags_have_the_usual_words(text: str, value: bool) -> None:
    assert flag_option({"a": text}, "a", not value) is value


def test_missing_flag_has_its_default_and_another_word_is_refused() -> None:
    assert flag_option({}, "a", True) is True
    assert flag_option({}, "a", False) is False
    with pytest.raises(ConfigurationError) as caught:
        flag_option({"a": "maybe"}, "a", False)
    assert caught.value.field == "a"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_addresses_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "localhost.example.org", "example.org", "[::1]"])
def test_addresses_that_others_reach(host: str) -> None:
    assert not is_loopback(host)
