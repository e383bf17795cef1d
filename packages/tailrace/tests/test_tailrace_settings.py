"""Arguments come before the environment, the environment before the file; mistakes are named."""

import os
from pathlib import Path

import pytest

from tailrace._record_settings import RecordTables
from tailrace._settings import load_settings
from tailrace_common_api import ClientSettings, ConfigurationError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "settings.toml"


def test_without_any_settings_the_defaults_hold(config: Path) -> None:
    settings = load_settings(environment={})
    assert settings.server is None
    assert settings.client == ClientSettings()
    assert (settings.serve.data, settings.serve.grpc, settings.serve.http) == (
        Path("tailrace-data"),
        "127.0.0.1:7070",
        "127.0.0.1:7080",
    )
    assert settings.storage == {}


def test_the_first_source_that_names_a_setting_decides_it(config: Path) -> None:
    config.write_text(
        'server = "grpc://file:1"\n'
        "[client]\nchunk_size = 1\nanswer_timeout = 1\nconnect_timeout = 1\n"
        '[client.options]\na = "file"\n[serve]\ndata = "file"\ngrpc = "file:1"\n'
        '[storage]\ndurability = "fsync"\n'
    )
    environment = {
        "TAILRACE_CONFIG": str(config),
        "TAILRACE_SERVER": "ws://environment:2",
        "TAILRACE_CLIENT_CHUNK_SIZE": "2",
        "TAILRACE_CLIENT_ANSWER_TIMEOUT": "2.5",
        "TAILRACE_CLIENT_VERIFY": "off",
        "TAILRACE_SERVE_DATA": "environment",
        "TAILRACE_STORAGE_UPLOAD_GRACE": "5",
        "TAILRACE_GRPC_OPTIONS_B": "environment",
        "TAILRACE_UNRELATED": "ignored",
        "TAILRACE_HTTP_PUBLIC_BASE": "",
    }
    settings = load_settings({"client": {"chunk_size": 3, "verify": None}}, environment=environment)
    assert settings.server == "ws://environment:2"
    assert settings.client == ClientSettings(
        chunk_size=3, answer_timeout=2.5, connect_timeout=1.0, verify=False, options={"a": "file"}
    )
    assert (settings.serve.data, settings.serve.grpc) == (Path("environment"), "file:1")
    assert settings.storage == {"durability": "fsync", "upload_grace": "5"}
    assert settings.grpc.options == {"b": "environment"}
    assert settings.http.public_base is None


def test_a_file_of_the_folder_is_read_when_none_is_named(config: Path) -> None:
    Path("tailrace.toml").write_text('server = "grpc://here:1"\n')
    assert load_settings(environment={}).server == "grpc://here:1"
    config.write_text('server = "grpc://named:1"\n')
    assert load_settings(config=config, environment={}).server == "grpc://named:1"


def test_values_of_options_are_text(config: Path) -> None:
    config.write_text('[http.options]\ncompression = true\ncolours = 5\nprefix = "/x"\n')
    assert load_settings(config=config, environment={}).http.options == {
        "compression": "true",
        "colours": "5",
        "prefix": "/x",
    }


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        ("servers = 1", "servers", "unknown"),
        ("server = 1", "server", "1 is not text"),
        ("client = 1", "client", "1 is not a table"),
        ("[client]\nchunk = 1", "client.chunk", "unknown; known are chunk_size"),
        ('[client]\nchunk_size = "many"', "client.chunk_size", "'many' is not a whole number"),
        ("[client]\nchunk_size = true", "client.chunk_size", "True is not a whole number"),
        ("[client]\nchunk_size = 1.5", "client.chunk_size", "1.5 is not a whole number"),
        ("[client]\nchunk_size = 0", "client.chunk_size", "not within 1 byte and 4 MiB"),
        ('[client]\nverify = "maybe"', "client.verify", "'maybe' is not true or false"),
        ('[client]\nconnect_timeout = "soon"', "client.connect_timeout", "'soon' is not a number"),
        ("[client]\nconnect_timeout = 0", "client.connect_timeout", "not a positive number"),
        ("[client]\noptions = 1", "client.options", "1 is not a table"),
        ("[serve]\ndata = 1", "serve.data", "1 is not a path"),
        ("[serve]\ngrace = -1", "serve.grace", "-1.0 is not a number of seconds from 0 on"),
        ('[serve]\ndata = "a\\u0000b"', "serve.data", "is not a path"),
        ('[serve]\nlog_level = "loud"', "serve.log_level", "'loud' is not a level; known are debug, info"),
        ("server", "config", "is not TOML"),
        (
            "queue = 1",
            "queue",
            "unknown; known are server and the tables client, serve, grpc, http, storage, databases,",
        ),
        ("queues = 1", "queues", "not a table of tables"),
        ("[collections]\ncontacts = 'a'", "collections.contacts", "not a table"),
    ],
)
def test_mistakes_are_named(config: Path, text: str, field: str, problem: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(config=config, environment={})
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_mistakes_say_where_they_are(config: Path) -> None:
    config.write_text("[client]\nchunk_size = 0\nchunksize = 1\n")
    with pytest.raises(ConfigurationError, match=rf"client.chunksize: unknown; .* \(set in {config}\)$"):
        load_settings(config=config, environment={})
    environment = {"TAILRACE_CLIENT_CHUNK_SIZE": "many"}
    with pytest.raises(ConfigurationError, match=r"'many' is not .* \(set in TAILRACE_CLIENT_CHUNK_SIZE\)$"):
        load_settings(config=os.devnull, environment=environment)
    with pytest.raises(ConfigurationError, match=r"'few' is not a whole number$"):
        load_settings({"client": {"chunk_size": "few"}}, config=os.devnull, environment=environment)


def test_a_named_file_must_exist(config: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_settings(config=config, environment={})
    with pytest.raises(ConfigurationError, match="config"):
        load_settings(config=config.parent, environment={})


def test_each_transport_has_a_most_of_connections(config: Path) -> None:
    config.write_text("[grpc]\nmax_connections = 5\n")
    settings = load_settings(config=config, environment={"TAILRACE_HTTP_MAX_CONNECTIONS": "7"})
    assert (settings.grpc.max_connections, settings.http.max_connections) == (5, 7)
    defaults = load_settings(environment={})
    assert (defaults.grpc.max_connections, defaults.http.max_connections) == (10_000, 10_000)


def test_record_streams_are_declared_in_the_file(config: Path) -> None:
    config.write_text(
        '[databases.shop]\nurl = "sqlite:shop.sqlite"\nmax_connections = 3\n'
        '[collections.contacts]\ndatabase = "shop"\n[sources.books]\nsql = "SELECT 1"\n[queues.letters]\n'
    )
    records = load_settings(config=config, environment={}).records
    assert records.tables == {
        "databases": {"shop": {"url": "sqlite:shop.sqlite", "max_connections": 3}},
        "collections": {"contacts": {"database": "shop"}},
        "sources": {"books": {"sql": "SELECT 1"}},
        "queues": {"letters": {}},
    }
    assert records.place_of("collections.contacts.database") == str(config)
    assert records.place_of("databases.shop.url") == str(config)
    assert records.place_of("storage.durability") is None
    assert load_settings(environment={}).records.tables == {}


def test_the_url_of_a_database_may_come_from_the_environment_alone(config: Path) -> None:
    config.write_text(
        '[databases."book-shop.1"]\nurl = "sqlite:a"\nmax_connections = 3\n[databases.other]\nurl = "b"\n'
    )
    environment = {
        "TAILRACE_DATABASES_BOOK_SHOP_1_URL": "postgresql://u:secret@h/d",
        "TAILRACE_DATABASES_MORE_OF_IT_URL": "sqlite:c",
        "TAILRACE_DATABASES_OTHER_URL": "",
    }
    records = load_settings(config=config, environment=environment).records
    assert records.tables["databases"] == {
        "book-shop.1": {"url": "postgresql://u:secret@h/d", "max_connections": 3},
        "other": {"url": "b"},
        "more_of_it": {"url": "sqlite:c"},
    }
    assert records.place_of("databases.book-shop.1.url") == "TAILRACE_DATABASES_BOOK_SHOP_1_URL"
    assert records.place_of("databases.book-shop.1.max_connections") == str(config)
    assert "secret" not in repr(records)
    assert isinstance(records, RecordTables)


@pytest.mark.parametrize("variable", ["TAILRACE_DATABASES_SHOP_MAX_CONNECTIONS", "TAILRACE_DATABASES_URL"])
def test_only_the_url_of_a_database_is_taken_from_the_environment(config: Path, variable: str) -> None:
    with pytest.raises(ConfigurationError, match="only the URL can be set in the environment") as caught:
        load_settings(environment={variable: "secret"})
    assert caught.value.field == variable
    assert "secret" not in str(caught.value)


def test_a_variable_is_for_one_database(config: Path) -> None:
    config.write_text("[databases.a-b]\n[databases.a_b]\n")
    with pytest.raises(ConfigurationError, match="it may be for a-b or a_b"):
        load_settings(config=config, environment={"TAILRACE_DATABASES_A_B_URL": "secret"})


def test_urls_of_databases_are_not_told(config: Path) -> None:
    for text in ('databases = "postgresql://u:secret@h/d"', '[databases]\nshop = "postgresql://u:secret@h/d"'):
        config.write_text(text)
        with pytest.raises(ConfigurationError) as caught:
            load_settings(config=config, environment={})
        assert "secret" not in str(caught.value)
        assert caught.value.problem.endswith(f"(set in {config})")
