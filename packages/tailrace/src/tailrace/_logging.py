"""Log records on standard error, with the resource that each is about."""

from __future__ import annotations

import logging
import sys

_TALKATIVE = ("asyncio", "grpc", "uvicorn", "websockets")
LEVELS = ("debug", "info", "warning", "error", "critical")
"""Names of levels, the most talkative first."""


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


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def configure_logging(level: str) -> None:
    """Send log records of this level and above to standard error.

    Args:
        level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level.lower() == "info":
        # What others say of their own start and end is not what an operator of this server looks for.
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)


def is_level(text: str) -> bool:
    """Return whether ``text`` names a level."""
    return text.lower() in LEVELS
