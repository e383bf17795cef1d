"""Databases of PostgreSQL that are not there: what is said of them, and where."""

import errno
import logging
import os
import socket

import pytest

from tailrace_common_api import ConfigurationError, StorageFailure
from tailrace_impl_server._postgres import PostgresDatabase, without_traceback


def nobodys_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"postgresql://user:secret@127.0.0.1:{taken.getsockname()[1]}/shop"


async def test_who_starts_is_told_which_setting_it_is() -> None:
    database = PostgresDatabase("shop", nobodys_url())
    with pytest.raises(ConfigurationError) as caught:
        await database.start()
    assert caught.value.field == "databases.shop.url"
    assert caught.value.problem == "the database cannot be reached: Connection refused"


async def test_who_uses_it_is_told_which_database_it_is() -> None:
    database = PostgresDatabase("shop", nobodys_url())
    with pytest.raises(StorageFailure) as caught:
        await database.connect()
    assert caught.value.message == "the database shop cannot be reached: Connection refused"


def test_the_log_of_the_driver_names_the_problem_without_a_traceback() -> None:
    refused = OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")
    record = logging.LogRecord(
        "asyncpg.pool", logging.WARNING, __file__, 1, "100%% of %s", ("it",), (OSError, refused, None)
    )
    assert without_traceback(record)
    assert logging.Formatter().format(record) == f"100% of it: {os.strerror(errno.ECONNREFUSED)}"
    assert without_traceback in logging.getLogger("asyncpg.pool").filters


def test_defects_keep_their_traceback() -> None:
    record = logging.LogRecord(
        "asyncpg.pool", logging.ERROR, __file__, 1, "no", None, (ValueError, ValueError("a defect"), None)
    )
    assert without_traceback(record)
    assert "ValueError: a defect" in logging.Formatter().format(record)
