"""Statements with named parameters, as settings declare them: ``:name`` outside of strings, comments and casts."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence

from tailrace_common_api import Argument, ConfigurationError

MAX_RESULTS = "max_results"
"""Parameter that every source may use without declaring it; without a value it is larger than any result."""
UNLIMITED = 2**63 - 1

_POSTGRES_TYPES = {str: "text", int: "bigint", float: "double precision", bool: "boolean"}


class Dialect(enum.Enum):
    """Whose SQL it is."""

    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


_PARAMETER = r"(?<![\w:\]\)]):(?P<name>[A-Za-z_]\w*)"
_COMMON = r"(?P<line>--[^\n]*) | (?P<block>/\*) | '(?:[^']|'')*' | \"(?:[^\"]|\"\")*\" | (?P<end>;) | (?P<open>['\"])"
_POSTGRES = re.compile(
    rf"""
    (?<!\w)[eE]'(?:[^'\\]|''|\\.)*'
    | (?P<dollar>(?<![\w$])\$(?:[^\W\d]\w*)?\$)
    | (?P<foreign>(?<![\w$])\$\d+)
    | {_COMMON} | {_PARAMETER}
    """,
    re.VERBOSE | re.DOTALL,
)
_SQLITE = re.compile(
    rf"`(?:[^`]|``)*` | \[[^\]]*\] | (?P<foreign>\?\d* | [@$][A-Za-z_]\w*) | {_COMMON} | {_PARAMETER}",
    re.VERBOSE | re.DOTALL,
)
_NESTED_COMMENT = re.compile(r"/\*|\*/")


class SqlStatement:
    """One statement with its parameters."""

    def __init__(
        self,
        source: str,
        sql: str,
        dialect: Dialect,
        *,
        parameters: Mapping[str, type],
        defaults: Mapping[str, Argument],
    ) -> None:
        """Translate a statement.

        Args:
            source: Name of the source, for errors.
            sql: The statement; a semicolon may end it.
            dialect: Whose SQL it is.
            parameters: Type of each parameter: ``str``, ``int``, ``float`` or ``bool``.
            defaults: Values of those that need not be given.

        Raises:
            ConfigurationError: The statement has parameters that are not declared, or lacks one that is; or it is more
                than one statement.
        """
        self._field = f"sources.{source}"
        self.parameters = dict(parameters)
        """Type of each parameter, :data:`MAX_RESULTS` included if the statement uses it."""
        self._defaults = dict(defaults)
        self._names: list[str] = []
        tokens = list(_tokens(self._field, sql, dialect))
        self.text = "".join(self._parameter(name, dialect) if name else text for text, name in tokens).strip()
        """The statement as the driver takes it, without a semicolon."""
        self.shape = "".join("NULL" if name else text for text, name in tokens).strip()
        """The same without parameters, to be looked at and not to be run."""
        for name in self.parameters:
            if name not in self._names:
                raise ConfigurationError(field=f"{self._field}.parameters.{name}", problem="the statement has none")
        for name in self._defaults.keys() - self.parameters.keys():
            raise ConfigurationError(field=f"{self._field}.parameters.{name}", problem="a default of no parameter")
        if MAX_RESULTS in self.parameters:
            self._defaults.setdefault(MAX_RESULTS, UNLIMITED)

    @property
    def required(self) -> frozenset[str]:
        """Parameters that must be given."""
        return frozenset(self.parameters.keys() - self._defaults.keys())

    def named(self, arguments: Mapping[str, Argument]) -> dict[str, Argument]:
        """Return the values of all parameters, by name."""
        return {**self._defaults, **arguments}

    def positional(self, arguments: Mapping[str, Argument]) -> list[Argument]:
        """Return the values of all parameters, in the order of their numbers."""
        values = self.named(arguments)
        return [values[name] for name in self._names]

    def _parameter(self, name: str, dialect: Dialect) -> str:
        if name == MAX_RESULTS:
            self.parameters.setdefault(name, int)
        if name not in self.parameters:
            raise ConfigurationError(field=f"{self._field}.sql", problem=f"the parameter :{name} is not declared")
        if name not in self._names:
            self._names.append(name)
        if dialect is Dialect.SQLITE:
            return f":{name}"
        # The type is said, and not left to be guessed from where the parameter stands.
        return f"${self._names.index(name) + 1}::{_POSTGRES_TYPES[self.parameters[name]]}"


def _tokens(field: str, sql: str, dialect: Dialect) -> Iterator[tuple[str, str | None]]:
    """Yield the parts of the first statement: text as it is, and parameters with their names."""
    pattern = _POSTGRES if dialect is Dialect.POSTGRESQL else _SQLITE
    position = 0
    while match := pattern.search(sql, position):
        yield sql[position : match.start()], None
        position = match.end()
        groups = match.groupdict()
        if groups["name"]:
            yield match[0], groups["name"]
            continue
        if groups["end"]:
            if any(token.strip() for token, _ in _without_comments(_tokens(field, sql[position:], dialect))):
                raise ConfigurationError(field=f"{field}.sql", problem="more than one statement")
            return
        if groups["foreign"]:
            raise ConfigurationError(field=f"{field}.sql", problem=f"{match[0]!a}: parameters are written :name")
        if groups["block"]:
            position = _end_of_comment(field, sql, match.start(), nested=dialect is Dialect.POSTGRESQL)
        elif groups["open"]:
            raise ConfigurationError(field=f"{field}.sql", problem=f"nothing closes {match[0]}")
        elif groups.get("dollar"):
            position = sql.find(match[0], match.end()) + len(match[0])
            if position < match.end():
                raise ConfigurationError(field=f"{field}.sql", problem=f"nothing closes {match[0]}")
        yield sql[match.start() : position], None
    yield sql[position:], None


def _without_comments(tokens: Iterator[tuple[str, str | None]]) -> Iterator[tuple[str, str | None]]:
    return ((token, name) for token, name in tokens if not token.startswith(("--", "/*")))


def _end_of_comment(field: str, sql: str, start: int, *, nested: bool) -> int:
    depth = 0
    for mark in _NESTED_COMMENT.finditer(sql, start):
        if mark[0] == "*/":
            depth -= 1
        elif nested or not depth:
            depth += 1
        if not depth:
            return mark.end()
    raise ConfigurationError(field=f"{field}.sql", problem="nothing closes /*")


def check_columns(source: str, columns: Sequence[str]) -> None:
    """Raise ConfigurationError unless the columns of a statement can be the fields of an object."""
    if not columns:
        raise ConfigurationError(field=f"sources.{source}.sql", problem="the statement gives no columns")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ConfigurationError(field=f"sources.{source}.sql", problem=f"there are two columns {twice[0]!a}")
