"""Where the contract of sinks looks behind a sink's back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tailrace_server_api import RecordSink

Row = Mapping[str, object]

COLUMNS = ("name", "email", "city", "number")
"""Columns of the table of the contract, and fields of its records."""


class SinkPlace(ABC):
    """A database of one's own with raw access to it, past every sink.

    It has a table ``cities`` (``id`` of 1 and 2) and an empty table ``contacts`` with ``name`` (text that must be there
    and is not empty), ``email`` (text, unique), ``city`` (a reference to ``cities``) and ``number`` (an integer of 32
    or 64 bits; unique together with ``name``).
    """

    @abstractmethod
    def new_sink(self, *, name: str = "contacts", table: str | None = "contacts", columns: Any = COLUMNS) -> RecordSink:
        """Return a sink of the database that is not started; without ``table`` for whole records, which are JSON."""

    @abstractmethod
    async def rows(self) -> Sequence[tuple[object, ...]]:
        """Return all rows of ``contacts`` that are visible, columns as in :data:`COLUMNS`, in order of insertion."""

    @abstractmethod
    async def records(self, name: str) -> Sequence[tuple[str | None, bytes]]:
        """Return all records that a sink for whole records has made visible, in order: key and content."""

    @abstractmethod
    async def insert(self, *rows: tuple[object, ...]) -> None:
        """Insert rows into ``contacts``."""

    @abstractmethod
    async def clear(self) -> None:
        """Delete all rows of ``contacts``."""

    @abstractmethod
    async def staged(self) -> int:
        """Count the records that are staged, of all bulks."""

    @abstractmethod
    async def lose(self, records: int) -> None:
        """Delete some of the records that are staged."""

    @abstractmethod
    async def orphan(self) -> None:
        """Let every bulk that runs be one of a process that has died."""

    @abstractmethod
    def held(self) -> AbstractAsyncContextManager[None]:
        """Return a context in which nothing can be inserted into ``contacts``: who tries waits."""
