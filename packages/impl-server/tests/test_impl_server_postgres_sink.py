"""What sinks on PostgreSQL do with the types and rules of tables, and with other servers."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest
from impl_server_sink_places import PostgresPlace

from tailrace_common_api import (
    BulkConflict,
    BulkRefused,
    BulkResult,
    ConfigurationError,
    Fenced,
    ProblemKind,
    RecordBatch,
    StorageFailure,
    StorageFull,
    record_problems,
)
from tailrace_impl_server._postgres_sink import PostgresSink
from tailrace_impl_server._record_validation import JsonObjectValidator
from tailrace_impl_server._sql_tables import RecordTable
from tailrace_server_api import BulkOrigin, RecordSink, StagedBatch
from tailrace_server_api.contracts.sink import begin, commit, contact, deliver, refused, row, stage, staged_batch, until

INVALID, DUPLICATE, REFERENCE, CONSTRAINT = (
    ProblemKind.INVALID,
    ProblemKind.DUPLICATE,
    ProblemKind.REFERENCE,
    ProblemKind.CONSTRAINT,
)


@pytest.fixture
async def place(postgres_url: str) -> AsyncGenerator[PostgresPlace, None]:
    async with PostgresPlace(postgres_url) as place:
        yield place


@asynccontextmanager
async def sink_into(place: PostgresPlace, *statements: str, **other: Any) -> AsyncGenerator[PostgresSink, None]:
    """Make the table ``things`` and yield a started sink into it."""
    for statement in statements:
        await place.raw.execute(statement)
    sink = PostgresSink("things", place.new_database(), **{"table": "things", **other})
    await sink.start()
    yield sink
    await sink.close()


async def _tuples(place: PostgresPlace, query: str) -> list[tuple[Any, ...]]:
    return [tuple(found) for found in await place.raw.fetch(query)]


async def told(sink: RecordSink, *rows: Any) -> list[tuple[int, ProblemKind, str | None]]:
    return await refused(sink, rows)


# Types


async def test_values_of_json_become_those_of_columns(place: PostgresPlace) -> None:
    columns = {
        "truth": ("boolean", True, True),
        "small": ("smallint", -32768, -32768),
        "large": ("bigint", 1 << 62, 1 << 62),
        "single": ("real", 0.5, 0.5),
        "double_": ("double precision", 3, 3.0),
        "exact": ("numeric(30, 10)", "12345678901234567.0123456789", None),
        "short": ("varchar(3)", "äöü", "äöü"),
        "fixed": ("char(3)", "a", "a  "),
        "bytes": ("bytea", "aGVsbG8=", b"hello"),
        "plain": ("json", {"a": [1, None]}, '{"a":[1,null]}'),
        "binary_": ("jsonb", ["x"], '["x"]'),
        "day": ("date", "2026-11-21", None),
        "clock": ("time", "12:30:01.5", None),
        "moment": ("timestamp", "2026-11-21T12:30:00", None),
        "zoned": ("timestamptz", "2026-11-21T12:30:00Z", None),
        "unique_": ("uuid", "7d444840-9dc0-11d1-b245-5ffdce74fad2", None),
        "mood": ("mood", "good", "good"),
        "positive": ("positive", 5, 5),
    }
    table = f"CREATE TABLE things ({', '.join(f'{name} {kind}' for name, (kind, _, _) in columns.items())})"
    types = ("CREATE TYPE mood AS ENUM ('good', 'bad')", "CREATE DOMAIN positive AS integer CHECK (VALUE > 0)")
    async with sink_into(place, *types, table) as sink:
        await deliver(sink, "bulk", [{name: value for name, (_, value, _) in columns.items()}, {}])
        first, second = await place.raw.fetch("SELECT * FROM things ORDER BY truth")
        for name, (_, value, expected) in columns.items():
            assert second[name] is None
            if expected is None:
                assert str(first[name]).replace("+00:00", "Z").replace(" ", "T").rstrip("0") == str(value).rstrip("0")
            else:
                assert first[name] == expected, name
        for bad, field in [
            ({"truth": 1}, "truth"),
            ({"small": 40_000}, "small"),
            ({"small": True}, "small"),
            ({"single": 1e300}, "single"),
            ({"double_": "1"}, "double_"),
            ({"exact": "much"}, "exact"),
            ({"exact": float("inf")}, "exact"),
            ({"short": "four"}, "short"),
            ({"bytes": "?"}, "bytes"),
            ({"binary_": {"a": "\0"}}, "binary_"),
            ({"day": "21.11.2026"}, "day"),
            ({"day": 5}, "day"),
            ({"moment": "2026-11-21T12:30:00Z"}, "moment"),
            ({"zoned": "2026-11-21T12:30:00"}, "zoned"),
            ({"unique_": "x"}, "unique_"),
            ({"mood": "unknown"}, "mood"),
            ({"positive": -1}, "positive"),
            ({"plain": {"a": object()}}, "plain"),
        ]:
            assert await _staging_refuses(sink, [{}, bad]) == [(1, INVALID, field)], bad
        assert await place.raw.fetchval("SELECT count(*) FROM things") == 2


def parsed(*records: bytes) -> StagedBatch:
    """Return records as the server's validation hands them on."""
    batch = RecordBatch(records)
    return StagedBatch(0, batch, JsonObjectValidator().parse(batch))


async def test_digits_that_no_double_has_are_kept_or_refused(place: PostgresPlace) -> None:
    """The parser of records makes doubles of long numbers: no column may take such a one for what was sent."""
    long_whole, long_real = "123456789012345678901234567890", "0.12345678901234567890123"
    table = "CREATE TABLE things (exact numeric, large bigint, binary_ jsonb, plain json, real_ double precision)"
    async with sink_into(place, table) as sink:
        await begin(sink, "bulk")
        records = [
            f'{{"exact": {long_whole}, "binary_": {{"a": [{long_whole}]}}, "plain": {long_whole}}}',
            f'{{"exact": {long_real}, "binary_": {long_real}, "plain": [{long_real}], "real_": {long_real}}}',
            f'{{"exact": {2**64 - 1}, "large": {-(2**63)}, "binary_": {2**64}, "plain": {-(2**63) - 1}}}',
            '{"exact": 0.1, "large": 9007199254740993.0, "real_": 0.30000000000000004, "plain": 0.30000000000000004}',
        ]
        await sink.stage("bulk", parsed(*map(str.encode, records)))
        await commit(sink, "bulk", len(records))
        found = await place.raw.fetch("SELECT exact::text, large, binary_::text, plain::text, real_ FROM things")
        assert [tuple(one) for one in found] == [
            (long_whole, None, f'{{"a": [{long_whole}]}}', long_whole, None),
            (long_real, None, long_real, f"[{long_real}]", 0.12345678901234568),
            (str(2**64 - 1), -(2**63), str(2**64), str(-(2**63) - 1), None),
            ("0.1", 9007199254740993, None, "0.30000000000000004", 0.30000000000000004),
        ]
        for refused_one, problem in [
            (long_whole, "is not within"),
            (str(2**63), "is not within"),
            (str(2**64), "is not within"),
            ("1.00000000000000000001", "no whole number"),
        ]:
            await begin(sink, "other")
            with pytest.raises(BulkRefused, match=problem) as raised:
                await sink.stage("other", parsed(b'{"large": 1}', f'{{"large": {refused_one}}}'.encode()))
            [told_] = record_problems(raised.value)
            assert (told_.index, told_.kind, told_.field) == (1, INVALID, "large")
            await sink.rollback("other")
        deep = b'{"exact": [' + b"[" * 1000 + long_whole.encode() + b"]" * 1000 + b"]}"
        await begin(sink, "deep")
        with pytest.raises(BulkRefused):
            await sink.stage("deep", parsed(deep))


async def _staging_refuses(sink: RecordSink, rows: Sequence[Any]) -> list[tuple[int, ProblemKind, str | None]]:
    await begin(sink, "unfit")
    with pytest.raises(BulkRefused) as raised:
        await sink.stage("unfit", StagedBatch(0, RecordBatch([b"{}"] * len(rows)), rows))
    await sink.rollback("unfit")
    return [(problem.index, problem.kind, problem.field) for problem in record_problems(raised.value)]


async def test_a_type_that_is_not_known_is_an_error_of_the_settings(place: PostgresPlace) -> None:
    with pytest.raises(ConfigurationError, match=r"integer\[\]"):
        async with sink_into(place, "CREATE TABLE things (numbers integer[])"):
            pass


async def test_names_with_quotes_and_schemas_are_names(place: PostgresPlace) -> None:
    name = 'odd "name"; --'
    async with sink_into(
        place,
        "CREATE SCHEMA shop",
        'CREATE TABLE shop.things ("odd ""name""; --" text UNIQUE, position integer)',
        table="shop.things",
        columns={name: name, "b": "position"},
    ) as sink:
        await deliver(sink, "bulk", [{name: "x", "b": 7}])
        assert await told(sink, {name: "y"}, {name: "x"}) == [(1, DUPLICATE, name)]
        assert await _tuples(place, "SELECT * FROM shop.things") == [("x", 7)]


# Rules


async def test_what_is_not_there_gets_the_default_of_a_column_that_cannot_be_null(place: PostgresPlace) -> None:
    table = """CREATE TABLE things (
        id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
        name text NOT NULL DEFAULT 'nobody',
        other text DEFAULT 'x',
        twice text GENERATED ALWAYS AS (name || name) STORED
    )"""
    async with sink_into(place, table, columns=["name", "other"]) as sink:
        await deliver(sink, "bulk", [{}, {"name": "a", "other": "b"}])
        assert await _tuples(place, "SELECT * FROM things ORDER BY id") == [
            (1, "nobody", None, "nobodynobody"),
            (2, "a", "b", "aa"),
        ]
    for column in ("twice", "nothing"):
        with pytest.raises(ConfigurationError, match=column):
            async with sink_into(place, columns=[column]):
                pass


async def test_unique_expressions_and_parts_are_looked_up(place: PostgresPlace) -> None:
    async with sink_into(
        place,
        "CREATE TABLE things (name text, kind text, active boolean DEFAULT true, number integer DEFAULT 5)",
        "CREATE UNIQUE INDEX ON things (lower(name), kind)",
        "CREATE UNIQUE INDEX ON things (number) WHERE active",
        columns=["name", "kind", "number"],
    ) as sink:
        rows = [
            {"name": "A", "kind": "k", "number": 1},
            {"name": "a", "kind": "other", "number": 2},
            {"name": "a", "kind": "k", "number": 3},
            {"name": "b", "kind": "k", "number": 2},
            {"name": None, "kind": "k"},
            {"name": None, "kind": "k"},
        ]
        assert await told(sink, *rows) == [(2, DUPLICATE, "name, kind"), (3, DUPLICATE, "number")]


async def test_unique_nulls_are_looked_up(place: PostgresPlace) -> None:
    if int(await place.raw.fetchval("SHOW server_version_num")) < 150_000:
        pytest.skip("PostgreSQL before 15 has no NULLS NOT DISTINCT")
    async with sink_into(place, "CREATE TABLE things (name text UNIQUE NULLS NOT DISTINCT)") as sink:
        assert await told(sink, {}, {"name": "a"}, {}) == [(2, DUPLICATE, "name")]


async def test_rules_that_are_deferred_are_looked_up(place: PostgresPlace) -> None:
    async with sink_into(
        place,
        """CREATE TABLE things (
            name text UNIQUE DEFERRABLE INITIALLY DEFERRED,
            city integer REFERENCES cities DEFERRABLE INITIALLY DEFERRED
        )""",
    ) as sink:
        rows = [{"name": "a", "city": 1}, {"name": "a", "city": 2}, {"name": "b", "city": 3}]
        assert await told(sink, *rows) == [(1, DUPLICATE, "name"), (2, REFERENCE, "city")]


async def test_records_may_refer_to_others_of_their_bulk(place: PostgresPlace) -> None:
    table = "CREATE TABLE things (id integer PRIMARY KEY, parent integer REFERENCES things (id))"
    async with sink_into(place, table) as sink:
        rows = [{"id": 2, "parent": 3}, {"id": 3, "parent": 3}, {"id": 4, "parent": 2}]
        await deliver(sink, "bulk", rows)
        assert await told(sink, {"id": 5, "parent": 6}, {"id": 6, "parent": 7}) == [(1, REFERENCE, "parent")]


async def test_references_of_several_columns_are_looked_up(place: PostgresPlace) -> None:
    async with sink_into(
        place,
        "CREATE TABLE others (a integer, b text, PRIMARY KEY (a, b))",
        "INSERT INTO others VALUES (1, 'x')",
        "CREATE TABLE things (b text, a integer, FOREIGN KEY (a, b) REFERENCES others (a, b))",
    ) as sink:
        assert await told(sink, {"a": 1, "b": "x"}, {"a": 1}, {"a": 1, "b": "y"}) == [(2, REFERENCE, "a, b")]


@pytest.mark.parametrize("first", [0, 1, 500, 999])
async def test_rules_that_only_the_database_can_judge_are_found_by_trying(place: PostgresPlace, first: int) -> None:
    trigger = """
        CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.name = 'bad' THEN RAISE EXCEPTION 'not %', NEW.name; END IF; RETURN NEW; END $$
    """
    async with sink_into(
        place,
        "CREATE TABLE things (name text, span int4range, EXCLUDE USING gist (span WITH &&))",
        trigger,
        "CREATE TRIGGER judge BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION judge()",
        columns=["name"],
    ) as sink:
        rows = [{"name": "bad" if number >= first else "good"} for number in range(1000)]
        with pytest.raises(BulkRefused) as raised:
            await deliver(sink, "bulk", rows)
        (problem,) = record_problems(raised.value)
        assert (problem.index, problem.kind, problem.problem) == (first, CONSTRAINT, "not bad")
        assert await place.raw.fetchval("SELECT count(*) FROM things") == 0


async def test_a_table_that_takes_less_than_it_is_given_commits_nothing(place: PostgresPlace) -> None:
    skip = "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
    async with sink_into(
        place,
        "CREATE TABLE things (name text)",
        skip,
        "CREATE TRIGGER skip BEFORE INSERT ON things FOR EACH ROW WHEN (NEW.name = 'x') EXECUTE FUNCTION skip()",
    ) as sink:
        with pytest.raises(StorageFailure, match="1 of 2"):
            await deliver(sink, "bulk", [{"name": "x"}, {"name": "y"}])
        assert await place.raw.fetchval("SELECT count(*) FROM things") == 0


async def test_a_table_into_which_nobody_may_insert_is_an_error_of_the_settings(place: PostgresPlace) -> None:
    await place.raw.execute("CREATE VIEW things AS SELECT 1 AS name")
    with pytest.raises(ConfigurationError, match="no table"):
        async with sink_into(place):
            pass


async def test_whole_records_go_into_a_table_of_somebody_else(place: PostgresPlace) -> None:
    committed: list[int] = []
    into = RecordTable(
        name="work",
        columns={"queue": "'q'", "priority": "bulk.priority", "record": "staged.record", "key": "staged.key"},
        then="INSERT INTO counts VALUES ($1::bigint)",
    )
    async with sink_into(
        place,
        "CREATE TABLE work (id serial, queue text, priority integer, record bytea, key text)",
        "CREATE TABLE counts (records bigint)",
        table=None,
        into=into,
        committed=lambda: committed.append(1),
    ) as sink:
        await sink.begin(BulkOrigin(id="bulk", principal="", key=None, priority=7))
        await sink.stage("bulk", staged_batch(0, [{"n": 1}, {"n": 2}], ["a", None]))
        assert committed == []
        await commit(sink, "bulk", 2)
        assert committed == [1]
    assert await _tuples(place, "SELECT * FROM work ORDER BY id") == [
        (1, "q", 7, b'{"n": 1}', "a"),
        (2, "q", 7, b'{"n": 2}', None),
    ]
    assert await place.raw.fetchval("SELECT records FROM counts") == 2


# Other servers


async def test_the_commit_of_another_server_is_waited_for(place: PostgresPlace) -> None:
    first, second = place.new_sink(), place.new_sink()
    await first.start()
    await second.start()
    await begin(first, "first", key="once")
    await stage(first, "first", [contact(1)])
    async with place.held():
        committing = asyncio.create_task(commit(first, "first", 1))
        await place.until_waiting()
        beginning = asyncio.create_task(begin(second, "second", key="once"))
        await asyncio.sleep(0.1)
        assert not beginning.done()
    await committing
    found = await beginning
    assert isinstance(found, BulkResult)
    assert (found.id, found.repeated) == ("first", True)
    await first.close()
    await second.close()


async def test_a_key_belongs_to_one_collection_and_priority(place: PostgresPlace) -> None:
    first, second = place.new_sink(), place.new_sink(name="notes", table=None, columns=None)
    await first.start()
    await second.start()
    await deliver(first, "first", [contact(1)], key="once")
    with pytest.raises(BulkConflict):
        await begin(second, "second", key="once")
    with pytest.raises(BulkConflict):
        await first.begin(BulkOrigin(id="third", principal="someone", key="once", priority=1))
    await first.close()
    await second.close()


async def test_the_bulks_of_a_server_that_is_alive_are_never_swept(place: PostgresPlace) -> None:
    first, second = place.new_sink(), place.new_sink()
    await first.start()
    await begin(first, "first")
    await stage(first, "first", [contact(1)])
    await second.start()
    assert await second.sweep(0) == 0
    assert await place.staged() == 1
    await place.orphan()
    assert await second.sweep(3600) == 1
    assert await place.staged() == 0
    await first.close()
    await second.close()


async def test_a_server_whose_connection_was_cut_is_alive_again(place: PostgresPlace) -> None:
    first, second = place.new_sink(), place.new_sink()
    await first.start()
    await begin(first, "first")
    await stage(first, "first", [contact(1)])
    assert await _alive(place) == 1
    await place.raw.fetch(f"SELECT pg_terminate_backend(pid) {_LOCKS}")
    await until(lambda: _alive(place), 1)
    await second.start()
    assert await second.sweep(0) == 0
    await commit(first, "first", 1)
    assert await place.rows() == [row(contact(1))]
    await first.close()
    await second.close()
    await until(lambda: _alive(place), 0)


_LOCKS = """
FROM pg_locks WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def _alive(place: PostgresPlace) -> int:
    count: int = await place.raw.fetchval(f"SELECT count(*) {_LOCKS}")
    return count


async def test_many_commits_leave_connections_to_others(place: PostgresPlace) -> None:
    database = place.new_database(max_connections=4)
    sink = PostgresSink("contacts", database, table="contacts")
    await sink.start()
    for number in range(8):
        await begin(sink, f"bulk-{number}")
        await stage(sink, f"bulk-{number}", [contact(number)])
    async with place.held():
        commits = [asyncio.create_task(commit(sink, f"bulk-{number}", 1)) for number in range(8)]
        await place.until_waiting()
        async with asyncio.timeout(20), database.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        await begin(sink, "another")
    await asyncio.gather(*commits)
    assert len(await place.rows()) == 8
    await sink.close()


async def test_what_waits_for_its_commit_is_not_swept(place: PostgresPlace) -> None:
    database = place.new_database(max_connections=2)
    sink = PostgresSink("contacts", database, table="contacts")
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    await begin(sink, "left alone")
    await stage(sink, "left alone", [contact(2), contact(3)])
    async with database.moves:
        committing = asyncio.create_task(commit(sink, "bulk", 1))
        await asyncio.sleep(0)
        assert await sink.sweep(0.0) == 2
    assert (await committing).records == 1
    assert len(await place.rows()) == 1
    await sink.close()


async def test_the_time_of_a_commit_is_the_time_of_the_database(
    place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are kept by the clock of the database: a server whose own is far behind does not forget them at once."""
    sink = place.new_sink()
    await sink.start()
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    result = await deliver(sink, "bulk", [contact(1)], key="once")
    now = await place.raw.fetchval("SELECT extract(epoch FROM clock_timestamp())::double precision")
    assert 0 <= now - result.committed_at < 60
    await sink.sweep(3600.0, results_older_than=3600.0)
    repeated = await begin(sink, "again", key="once")
    assert repeated is not None
    assert repeated.committed_at == result.committed_at
    await sink.close()


async def test_a_bulk_is_told_who_has_ended_it(place: PostgresPlace) -> None:
    first, second = place.new_sink(), place.new_sink()
    for sink in (first, second):
        await sink.start()
    await begin(first, "bulk", key="once")
    await begin(second, "newer", key="once")
    with pytest.raises(Fenced, match="a newer one has the same idempotency key"):
        await stage(first, "bulk", [contact(1)])
    await begin(first, "swept")
    await first.sweep(0.0)
    with pytest.raises(Fenced, match="it was swept") as raised:
        await stage(first, "swept", [contact(1)])
    assert "key" not in str(raised.value)
    await first.rollback("swept")
    with pytest.raises(Fenced, match="rolled back"):
        await commit(first, "swept", 1)
    for sink in (first, second):
        await sink.close()


async def test_limits_of_the_user_do_not_end_a_commit(place: PostgresPlace) -> None:
    await place.raw.execute("ALTER ROLE CURRENT_USER SET statement_timeout = '150ms'")
    try:
        sink = place.new_sink()
        await sink.start()
        await begin(sink, "bulk")
        await stage(sink, "bulk", [contact(1)])
        async with place.held():
            committing = asyncio.create_task(commit(sink, "bulk", 1))
            await place.until_waiting()
            await asyncio.sleep(0.4)
        await committing
        await sink.close()
    finally:
        await place.raw.execute("ALTER ROLE CURRENT_USER RESET statement_timeout")
    assert len(await place.rows()) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DROP TABLE contacts", 'relation "contacts" does not exist'),
        ("ALTER TABLE contacts DROP COLUMN city", 'column "city" of relation "contacts" does not exist'),
        ("ALTER TABLE contacts ALTER city TYPE boolean USING city > 1", '"city" is of type boolean'),
    ],
)
async def test_a_table_that_is_changed_meanwhile_is_a_failure(place: PostgresPlace, change: str, problem: str) -> None:
    sink = place.new_sink()
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    await place.raw.execute("ALTER TABLE contacts DROP CONSTRAINT contacts_city_fkey")
    await place.raw.execute(change)
    with pytest.raises(StorageFailure, match=problem):
        await commit(sink, "bulk", 1)
    await sink.rollback("bulk")
    assert await place.staged() == 0
    await sink.close()


async def test_a_table_for_staging_that_is_dropped_is_a_failure(place: PostgresPlace) -> None:
    sink = PostgresSink("contacts", place.new_database(), table="contacts")
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    await place.raw.execute(f'DROP TABLE "{sink._target.staging}"')
    with pytest.raises(StorageFailure, match="does not exist"):
        await stage(sink, "bulk", [contact(2)])
    with pytest.raises(StorageFailure, match="does not exist"):
        await commit(sink, "bulk", 1)
    await sink.rollback("bulk")
    await sink.close()


@pytest.mark.parametrize("staging", [True, False])
async def test_a_full_disk_is_told_as_such(place: PostgresPlace, staging: bool) -> None:
    sink = PostgresSink("contacts", place.new_database(), table="contacts")
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    await place.raw.execute(
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'no space left' USING ERRCODE = 'disk_full'; END $$"
    )
    table = sink._target.staging if staging else "contacts"
    await place.raw.execute(f'CREATE TRIGGER filled BEFORE INSERT ON "{table}" FOR EACH ROW EXECUTE FUNCTION fill()')
    with pytest.raises(StorageFull, match="is full: no space left"):
        await (sink.stage("bulk", staged_batch(1, [contact(2)])) if staging else commit(sink, "bulk", 1))
    await sink.rollback("bulk")
    assert await place.staged() == 0
    assert await place.rows() == []
    await sink.close()


async def test_transactions_that_lock_each_other_are_tried_again(place: PostgresPlace) -> None:
    sink = place.new_sink()
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1), contact(2)])
    other = await asyncpg.connect(place.url)
    transaction = other.transaction()
    await transaction.start()
    insert = "INSERT INTO contacts VALUES ($1, $2, $3, $4)"
    await other.execute(insert, *row(contact(2)))
    committing = asyncio.create_task(commit(sink, "bulk", 2))
    await place.until_waiting()
    # It waits for the second contact, this one for the first: the database ends one of the two.
    with suppress(asyncpg.DeadlockDetectedError):
        await other.execute(insert, *row(contact(1)))
    await transaction.rollback()
    await committing
    assert len(await place.rows()) == 2
    await other.close()
    await sink.close()
