"""Settings from three places: arguments come before the environment, the environment before a TOML file.

A setting is named by its table and its key. The file has ``key = value`` under ``[table]``; the environment has
``TAILRACE_TABLE_KEY``; ``server`` stands outside any table. So ``chunk_size`` of the client is ``[client]`` with
``chunk_size = 524288``, or ``TAILRACE_CLIENT_CHUNK_SIZE=524288``. What the tables of record streams declare is in the
file alone, but for the URLs of databases.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from tailrace._logging import LEVELS, LOG_FORMATS, is_level
from tailrace._record_settings import RECORD_TABLES, RecordTables, read_record_tables
from tailrace_common_api import ClientSettings, ConfigurationError

CONFIG_VARIABLE = "TAILRACE_CONFIG"
"""Environment variable that names the TOML file."""
DEFAULT_FILE = "tailrace.toml"
"""File that is read, where it exists, when none is named."""

_PREFIX = "TAILRACE_"
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Tables = Mapping[str, object]
"""Values as they were given: by table, then by key; ``None`` stands for a value that was not given."""
SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Table ``[serve]``: what ``tailrace serve`` does."""

    data: Path = Path("tailrace-data")
    """Folder of the resources; made where it does not exist."""
    grpc: str = "127.0.0.1:7070"
    """``HOST:PORT`` of the gRPC transport; port 0 picks a free one."""
    http: str = "127.0.0.1:7080"
    """``HOST:PORT`` of WebSocket and HTTP; port 0 picks a free one."""
    grace: float = 5.0
    """Time that running requests have to end when the server is stopped, in seconds."""
    insecure: bool = False
    """Whether to listen on addresses of the network without access control, or without TLS."""
    log_level: str = "info"
    """Least level of the records that are logged: ``debug``, ``info``, ``warning``, ``error`` or ``critical``."""
    log_format: str = "text"
    """Form of the records that are logged: ``text``, or ``json`` for one object a line."""

    def __post_init__(self) -> None:
        if not self.grace >= 0:
            raise ConfigurationError(field="grace", problem=f"{self.grace!a} is not a number of seconds from 0 on")
        if not is_level(self.log_level):
            raise ConfigurationError(
                field="log_level", problem=f"{self.log_level!a} is not a level; known are {', '.join(LEVELS)}"
            )
        if self.log_format not in LOG_FORMATS:
            raise ConfigurationError(
                field="log_format", problem=f"{self.log_format!a} is not a format; known are {', '.join(LOG_FORMATS)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportSettings:
    """Tables ``[grpc]`` and ``[http]``: one transport of a server, its address apart."""

    public_base: str | None = None
    """URL, path prefix included, under which clients reach this transport; ``None`` for the bound address."""
    chunk_size: int | None = None
    """Bytes of a full chunk on the way to readers that do not say what suits them; ``None`` for the transport's best.
    What bounds all of them is an option of the server."""
    keepalive_interval: float = 20.0
    """Time between signs of life on an idle connection, in seconds."""
    keepalive_timeout: float = 20.0
    """Time after which an unanswered sign of life ends the connection, in seconds."""
    certificate_file: str | None = None
    """PEM file of the certificate (chain) of the server; ``None``: no TLS."""
    key_file: str | None = None
    """PEM file of the private key of :attr:`certificate_file`."""
    client_ca_file: str | None = None
    """PEM file of the certificate authorities of clients: who shows no certificate of theirs is not let in."""
    max_connections: int = 10_000
    """Most connections at the same time; more are refused with ``Overloaded``."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the one transport, by name; unknown ones are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings."""

    server: str | None
    """URL of the server for what names none itself; several are separated by commas or white space."""
    client: ClientSettings
    """Table ``[client]``."""
    serve: ServeSettings
    """Table ``[serve]``."""
    grpc: TransportSettings
    """Table ``[grpc]``."""
    http: TransportSettings
    """Table ``[http]``."""
    storage: Mapping[str, object]
    """Table ``[storage]``: options of the server behind the transports, which knows them."""
    records: RecordTables = field(default_factory=RecordTables)
    """Tables in ``[databases]``, ``[collections]``, ``[sources]`` and ``[queues]``."""


_TABLES: Mapping[str, type] = {
    "client": ClientSettings,
    "serve": ServeSettings,
    "grpc": TransportSettings,
    "http": TransportSettings,
}


def load_settings(
    arguments: Tables | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Read all settings. Blocking: reads a file.

    Args:
        arguments: Values that come before all others.
        config: The TOML file; ``None`` for the one that ``TAILRACE_CONFIG`` names, or ``./tailrace.toml`` if there is
            one.
        environment: Environment variables.

    Raises:
        ConfigurationError: A value cannot work, a setting is unknown, or the file cannot be read.
    """
    path = config or environment.get(CONFIG_VARIABLE) or None
    file = _read_file(path)
    sources: list[Tables] = [arguments or {}, _Environment(environment), file]
    try:
        unknown = sorted(file.keys() - _TABLES.keys() - {"server", "storage", *RECORD_TABLES})
        if unknown:
            known = ", ".join((*_TABLES, "storage", *RECORD_TABLES))
            problem = f"unknown; known are server and the tables {known}"
            raise ConfigurationError(field=unknown[0], problem=problem)
        return Settings(
            server=_first_text(sources, "server"),
            client=_read_table(sources, "client", ClientSettings),
            serve=_read_table(sources, "serve", ServeSettings),
            grpc=_read_table(sources, "grpc", TransportSettings),
            http=_read_table(sources, "http", TransportSettings),
            storage=_merged(sources, "storage"),
            records=read_record_tables(file, str(path or DEFAULT_FILE), environment),
        )
    except ConfigurationError as error:
        variable = _PREFIX + error.field.replace(".", "_").upper()
        places = ["", variable, str(path or DEFAULT_FILE)]
        place = next((place for source, place in zip(sources, places, strict=True) if _has(source, error.field)), "")
        if not place:
            raise  # An argument, which whoever gave it has before them.
        raise ConfigurationError(field=error.field, problem=f"{error.problem} (set in {place})") from None


def _has(source: Tables, name: str) -> bool:
    value: object = source
    for key in name.split("."):
        if not isinstance(value, Mapping):
            break
        value = value.get(key)
    return value is not None


class _Environment(dict[str, object]):
    """The environment in the shape of the file; its values are text."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__()
        for name, value in environment.items():
            if not name.startswith(_PREFIX) or not value:
                continue
            words = name.removeprefix(_PREFIX).lower()
            table, _, key = words.partition("_")
            if words == "server":
                self["server"] = value
            elif table in _TABLES or table == "storage":
                keys = self.setdefault(table, {})
                assert isinstance(keys, dict)
                if key.startswith("options_"):
                    keys.setdefault("options", {})[key.removeprefix("options_")] = value
                else:
                    keys[key] = value


def _read_file(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    named = Path(DEFAULT_FILE if path is None else path)
    try:
        with open(named, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if path is None:
            return {}
        raise ConfigurationError(field="config", problem=f"{str(named)!a} does not exist") from None
    except OSError as error:
        raise ConfigurationError(field="config", problem=f"{str(named)!a}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(field="config", problem=f"{str(named)!a} is not TOML: {error}") from error


def _merged(sources: list[Tables], table: str) -> dict[str, object]:
    """Return the keys of a table, each from the first source that has it."""
    merged: dict[str, object] = {}
    for source in reversed(sources):
        keys = source.get(table) or {}
        if not isinstance(keys, Mapping):
            raise ConfigurationError(field=table, problem=f"{keys!a} is not a table")
        merged.update({key: value for key, value in keys.items() if value is not None})
    return merged


def _first_text(sources: list[Tables], name: str) -> str | None:
    value = next((source[name] for source in sources if source.get(name) is not None), None)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(field=name, problem=f"{value!a} is not text, nor a list of it")
    return value


def _read_table(sources: list[Tables], table: str, cls: type[SettingsT]) -> SettingsT:
    hints = get_type_hints(cls)
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]  # all of them are dataclasses
    values = {}
    for key, value in _merged(sources, table).items():
        if key not in known:
            raise ConfigurationError(field=f"{table}.{key}", problem=f"unknown; known are {', '.join(known)}")
        values[key] = _convert(f"{table}.{key}", value, hints[key])
    try:
        return cls(**values)
    except ConfigurationError as error:
        raise ConfigurationError(field=f"{table}.{error.field}", problem=error.problem) from None


_KINDS: Mapping[object, str] = {
    bool: "true or false",
    int: "a whole number",
    int | None: "a whole number",
    float: "a number",
    str: "text",
    str | None: "text",
    Path: "a path",
}


def _convert(name: str, value: object, hint: object) -> object:
    """Return the value as the type that the setting has; text from the environment is read as that type."""
    try:
        if hint in (bool,):
            return value if isinstance(value, bool) else _FLAGS[str(value).lower()]
        if hint in (int, int | None) and not isinstance(value, (bool, float)):
            return int(value)  # type: ignore[call-overload]  # what is no number is refused below
        if hint in (float,) and not isinstance(value, bool):
            return float(value)  # type: ignore[arg-type]  # the same
        if hint in (str, str | None) and isinstance(value, str):
            return value
        if hint is Path and isinstance(value, (str, os.PathLike)) and "\0" not in os.fspath(value):
            return Path(value)
        if isinstance(value, Mapping):
            return {key: _option_text(item) for key, item in value.items()}
    except (KeyError, TypeError, ValueError):
        pass
    raise ConfigurationError(field=name, problem=f"{value!a} is not {_KINDS.get(hint, 'a table')}")


def _option_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
