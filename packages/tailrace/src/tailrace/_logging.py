"""Log records on standard error, with the resource that each is about: lines for people, or one JSON object each."""

from __future__ import annotations

import json
import logging
import sys
import time

_TALKATIVE = ("asyncio", "grpc", "uvicorn", "websockets")
LEVELS = ("debug", "info", "warning", "error", "critical")
"""Names of levels, the most talkative first."""
LOG_FORMATS = ("text", "json")
"""Names of formats, the default first."""

_ABOUT = ("resource", "context", "principal", "peer", "code")
"""What a record may say beside its message, as attributes of these names."""


class _LineFormatter(logging.Formatter):
    """One line a record: time, level, logger, resource id where the record has one, and text.

    Whatever comes from the network cannot start a line of its own or control a terminal.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s%(about)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        resource = getattr(record, "resource", None)
        record.about = "" if resource is None else f" [{_one_line(str(resource))}]"
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the standard library
        record.message = _one_line(record.message)
        return super().formatMessage(record)


class _JsonFormatter(logging.Formatter):
    """One JSON object a record, on one line of ASCII.

    Always there are ``time`` (UTC), ``level``, ``logger`` and ``message``; where they are known ``resource``,
    ``context``, ``principal``, ``peer``, ``code``, ``trace_id``, ``span_id`` and ``exception``, whose text is the only
    one with line breaks.
    """

    def __init__(self) -> None:
        super().__init__()
        # Here, as the settings of every client name the formats.
        from tailrace_impl_common import current_caller, current_trace

        self._current_caller = current_caller
        self._current_trace = current_trace

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._current_caller(),
            **self._current_trace(),
        }
        for name in _ABOUT:
            value = getattr(record, name, None)
            if value is not None:
                fields[name] = str(value)
        shown = {name: _one_line(text) for name, text in fields.items()}
        if record.exc_info and record.exc_info[0] is not None:
            lines = self.formatException(record.exc_info).split("\n")
            shown["exception"] = "\n".join(map(_one_line, lines))
        return json.dumps(shown)


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def configure_logging(level: str, log_format: str = "text") -> None:
    """Send log records of this level and above to standard error.

    Args:
        level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
        log_format: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level.lower() == "info":
        # What others say of their own start and end is not what an operator of this server looks for.
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)


def is_level(text: str) -> bool:
    """Return whether ``text`` names a level."""
    return text.lower() in LEVELS
