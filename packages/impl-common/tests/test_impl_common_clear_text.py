"""Who is warned that a token can be read on the way."""

import logging

import pytest

from tailrace_impl_common import _clear_text, warn_of_clear_text


@pytest.fixture(autouse=True)
def nobody_was_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_clear_text, "_warned", set())


def test_each_host_of_the_network_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    for host in ("files.example", "files.example", "192.0.2.1", "files.example", "2001:db8::1"):
        warn_of_clear_text(host)
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.split("'")[1] for text in texts] == ["files.example", "192.0.2.1", "2001:db8::1"]
    assert all("without TLS" in text for text in texts)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_nothing_is_said_of_this_machine(caplog: pytest.LogCaptureFixture, host: str) -> None:
    warn_of_clear_text(host)
    assert caplog.records == []


def test_a_host_cannot_write_lines_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_clear_text("a\nb\x1b[31m")
    (record,) = caplog.records
    assert record.getMessage().isprintable()
