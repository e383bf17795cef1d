"""Tables of settings that declare databases, and the ends of record streams in them.

They are handed to the server as the file has them: it knows their keys. Only the URL of a database may come from
elsewhere, since it may have a password: ``TAILRACE_DATABASES_NAME_URL``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tailrace_common_api import ConfigurationError

RECORD_TABLES = ("databases", "collections", "sources", "queues")
"""Tables that have tables in them, each with a name of the user's."""

_PREFIX = "TAILRACE_DATABASES_"
_SUFFIX = "_URL"
_NOT_IN_VARIABLES = re.compile(r"[^A-Z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTables:
    """What is declared, and where."""

    tables: Mapping[str, object] = field(default_factory=dict)
    """By name of the table, then by name of what is declared, then by key. URLs in it may be secret."""
    file: str = ""
    """The file that has them."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """By name of a database, the environment variable that has its URL."""

    def __repr__(self) -> str:
        # Without the values.
        return f"RecordTables(tables={sorted(self.tables)}, file={self.file!r})"

    def place_of(self, name: str) -> str | None:
        """Return where the setting of this name is set; ``None`` if it is none of these."""
        table, _, rest = name.partition(".")
        if table not in RECORD_TABLES:
            return None
        database, _, key = rest.rpartition(".")
        if table == "databases" and key == "url" and database in self.variables:
            return self.variables[database]
        return self.file


def read_record_tables(file: Mapping[str, object], path: str, environment: Mapping[str, str]) -> RecordTables:
    """Return the tables of a settings file, with the URLs that the environment has.

    ``TAILRACE_DATABASES_NAME_URL`` is for the database whose name is ``NAME`` in capital letters with ``_`` for every
    other character, or declares one with that name in small letters.

    Raises:
        ConfigurationError: A table is none, a variable is for two databases, or it is for another key.
    """
    tables: dict[str, object] = {}
    for table in RECORD_TABLES:
        declared = file.get(table)
        if declared is None:
            continue
        # Values are not told: what is written in the wrong place may be a URL with a password.
        if not isinstance(declared, Mapping):
            raise ConfigurationError(field=table, problem="not a table of tables")
        for name, keys in declared.items():
            if not isinstance(keys, Mapping):
                raise ConfigurationError(field=f"{table}.{name}", problem="not a table")
        tables[table] = declared
    databases, variables = _with_urls(tables.get("databases"), environment)
    if databases:
        tables["databases"] = databases
    return RecordTables(tables=tables, file=path, variables=variables)


def _with_urls(declared: object, environment: Mapping[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    databases: dict[str, object] = dict(declared) if isinstance(declared, Mapping) else {}
    variables: dict[str, str] = {}
    for variable, url in sorted(environment.items()):
        if not variable.startswith(_PREFIX) or not url:
            continue
        word, suffix, rest = variable.removeprefix(_PREFIX).rpartition(_SUFFIX)
        if not word or not suffix or rest:
            problem = f"of a database, only the URL can be set in the environment, as {_PREFIX}NAME{_SUFFIX}"
            raise ConfigurationError(field=variable, problem=problem)
        named = [name for name in databases if _NOT_IN_VARIABLES.sub("_", name.upper()) == word]
        if len(named) > 1:
            raise ConfigurationError(field=variable, problem=f"it may be for {' or '.join(sorted(named))}")
        name = named[0] if named else word.lower()
        keys = databases.get(name, {})
        assert isinstance(keys, Mapping)
        databases[name] = {**keys, "url": url}
        variables[name] = variable
    return databases, variables
