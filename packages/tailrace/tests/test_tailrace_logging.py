"""The log of a server as a program reads it."""

import contextlib
import contextvars
import json
import logging
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tailrace_processes import Run, Start, needs_server

from tailrace._logging import configure_logging
from tailrace._settings import load_settings
from tailrace_common_api import ConfigurationError
from tailrace_impl_common import set_caller

HOSTILE = "x\ny\x1b[31m\x7f\x00\u2028\u202e\x85 ü"


@contextlib.contextmanager
def logging_as(log_format: str, level: str = "info") -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before: list[Any] = [root.level, root.handlers[:]]
    try:
        configure_logging(level, log_format)
        yield logging.getLogger("tailrace_test")
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]


def objects(text: str) -> list[dict[str, str]]:
    assert all(character == "\n" or " " <= character < "\x7f" for character in text)
    return [json.loads(line) for line in text.splitlines()]


def test_a_record_is_one_object_with_what_is_known(capfd: pytest.CaptureFixture[str]) -> None:
    about = {"resource": "abc", "context": "ci", "principal": "ann", "peer": "192.0.2.1:5", "code": "not_found"}
    before = time.time()
    with logging_as("json") as logger:
        logger.warning("stored %d bytes", 5, extra=about)
        logger.info("plain")
        logger.debug("not shown")
    first, second = objects(capfd.readouterr().err)
    moment = first.pop("time")
    assert moment.endswith("Z")
    assert time.strftime("%Y-%m-%dT%H", time.gmtime(before))[:10] <= moment[:10]
    assert first == {"level": "warning", "logger": "tailrace_test", "message": "stored 5 bytes", **about}
    assert second.keys() == {"time", "level", "logger", "message"}


def test_nothing_that_others_send_controls_the_log_or_who_reads_it(capfd: pytest.CaptureFixture[str]) -> None:
    with logging_as("json") as logger:
        logger.info("got %s", HOSTILE, extra={"resource": HOSTILE, "peer": HOSTILE, "unheard_of": HOSTILE})
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logger.exception("it failed")
    first, second = objects(capfd.readouterr().err)
    shown = "x\\ny\\x1b[31m\\x7f\\x00\\u2028\\u202e\\x85 ü"
    assert (first["message"], first["resource"], first["peer"]) == (f"got {shown}", shown, shown)
    assert "unheard_of" not in first
    lines = second["exception"].split("\n")
    assert lines[0] == "Traceback (most recent call last):"
    assert any("raise ValueError" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_who_asked_stands_in_every_record_of_the_request(capfd: pytest.CaptureFixture[str]) -> None:
    with logging_as("json") as logger:

        def serve() -> None:
            set_caller(peer="192.0.2.1:5", principal="")
            logger.info("of somebody")
            set_caller(peer="192.0.2.1:5", principal="ann")
            logger.info("of ann")

        contextvars.copy_context().run(serve)
        logger.info("of nobody")
    callers = [(line.get("peer"), line.get("principal")) for line in objects(capfd.readouterr().err)]
    assert callers == [("192.0.2.1:5", None), ("192.0.2.1:5", "ann"), (None, None)]


def test_text_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    assert load_settings(environment={}).serve.log_format == "text"
    with logging_as(load_settings(environment={}).serve.log_format) as logger:
        logger.info("for people")
    assert capfd.readouterr().err.endswith("INFO    tailrace_test: for people\n")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'xml' is not a format; known are text, json"):
        load_settings({"serve": {"log_format": "xml"}}, environment={})


def test_the_server_logs_as_it_is_told(start: Start) -> None:
    needs_server()
    address = "127.0.0.1:0"
    options = ("--log-format", "json", "--grace", "0.5", "--json")
    process = start("serve", "--grpc", address, "--http", address, *options)
    assert process.stdout is not None
    assert process.stderr is not None
    urls = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    records = objects(process.stderr.read().decode())
    assert process.wait() == 0
    assert [record["level"] for record in records] == ["info", "info"]
    assert urls["grpc"] in records[0]["message"]
    assert records[1]["message"] == "stopping"


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--log-format", "xml", "serve.log_format: 'xml' is not a format; known are text, json"),
        ("--grace", "-1", "serve.grace: -1.0 is not a number of seconds from 0 on"),
        ("--grace", "soon", "serve.grace: 'soon' is not a number"),
    ],
)
def test_a_mistake_in_an_option_is_named(run: Run, option: str, value: str, problem: str) -> None:
    outcome = run("serve", option, value)
    assert (outcome.code, outcome.output) == (2, b"")
    assert outcome.errors.strip() == f"tailrace: {problem}"
