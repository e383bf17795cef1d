"""Named parameters in statements of SQL."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_common_api import Argument, ConfigurationError
from tailrace_impl_server._sql_parameters import UNLIMITED, Dialect, SqlStatement

_TYPES: dict[str, type] = {"id": int, "name": str, "rate": float, "flag": bool}


def statement(sql: str, dialect: Dialect = Dialect.POSTGRESQL, **defaults: int) -> SqlStatement:
    """Return a statement whose parameters are those that it seems to use."""
    used = {name: kind for name, kind in _TYPES.items() if f":{name}" in sql}
    return SqlStatement("books", sql, dialect, parameters=used, defaults=defaults)


def refused(sql: str, dialect: Dialect = Dialect.POSTGRESQL, **parameters: type) -> str:
    """Return the text of the error that a statement causes."""
    with pytest.raises(ConfigurationError) as caught:
        SqlStatement("books", sql, dialect, parameters=parameters, defaults={})
    return str(caught.value)


class TestPostgres:
    def test_parameters_get_numbers_and_types(self) -> None:
        made = statement("SELECT :name, :id, :rate, :flag, :id")
        assert made.text == "SELECT $1::text, $2::bigint, $3::double precision, $4::boolean, $2::bigint"
        assert made.shape == "SELECT NULL, NULL, NULL, NULL, NULL"
        arguments: dict[str, Argument] = {"id": 1, "name": "n", "rate": 0.5, "flag": None}
        assert made.positional(arguments) == ["n", 1, 0.5, None]
        assert made.required == {"id", "name", "rate", "flag"}

    @pytest.mark.parametrize(
        "text",
        [
            "SELECT ':id', 'it''s :id', \":id\", \"a\"\":id\"",
            r"SELECT E'it\'s :id', e'\\', 'back\'",
            "SELECT 1 -- :id ; ' \" /*",
            "SELECT 1 /* :id /* :id */ ' ; */ + 1",
            "SELECT $$ :id ' ; $$, $tag$ $$ :id $tag$",
            "SELECT x::text, '1'::bigint, a[1:2], a[lower:upper], a [1 : 2]",
            "SELECT '{}'::jsonb ? 'a', '{}'::jsonb @> '{}'",
            "SELECT name$1x FROM a$b",
        ],
    )
    def test_what_only_looks_like_a_parameter_stays(self, text: str) -> None:
        made = SqlStatement("books", text, Dialect.POSTGRESQL, parameters={}, defaults={})
        assert (made.text, made.shape) == (text, text)

    def test_casts_follow_parameters(self) -> None:
        assert statement("SELECT :name::date, (:id)::int").text == "SELECT $1::text::date, ($2::bigint)::int"

    def test_parameters_of_others_are_refused(self) -> None:
        assert refused("SELECT $1") == "sources.books.sql: '$1': parameters are written :name"


class TestSqlite:
    def test_parameters_stay(self) -> None:
        made = statement("SELECT :id, :name", Dialect.SQLITE)
        assert made.text == "SELECT :id, :name"
        assert made.shape == "SELECT NULL, NULL"
        assert made.named({"id": 1, "name": "n"}) == {"id": 1, "name": "n"}

    @pytest.mark.parametrize(
        "text",
        [
            "SELECT ':id', 'it''s :id', \":id\", `:id`, [:id]",
            "SELECT 1 -- :id ; '",
            "SELECT 1 /* :id /* ' ; */ + 1",
            r"SELECT 'back\', json('{}') ->> '$.x'",
        ],
    )
    def test_what_only_looks_like_a_parameter_stays(self, text: str) -> None:
        made = SqlStatement("books", text, Dialect.SQLITE, parameters={}, defaults={})
        assert (made.text, made.shape) == (text, text)

    @pytest.mark.parametrize("parameter", ["?", "?1", "@id", "$id"])
    def test_parameters_of_others_are_refused(self, parameter: str) -> None:
        assert "parameters are written :name" in refused(f"SELECT {parameter}", Dialect.SQLITE)


@pytest.mark.parametrize("dialect", list(Dialect))
class TestBoth:
    def test_one_semicolon_may_end_it(self, dialect: Dialect) -> None:
        assert statement(" SELECT 1 ; -- the end\n /* really */ ;\n", dialect).text == "SELECT 1"

    def test_there_is_one_statement(self, dialect: Dialect) -> None:
        assert refused("SELECT 1; DROP TABLE book", dialect) == "sources.books.sql: more than one statement"

    @pytest.mark.parametrize("text", ["SELECT 'a", 'SELECT "a', "SELECT 1 /* a", "SELECT 'it''s"])
    def test_what_is_open_is_refused(self, dialect: Dialect, text: str) -> None:
        assert "nothing closes" in refused(text, dialect)

    def test_parameters_and_declarations_belong_together(self, dialect: Dialect) -> None:
        assert refused("SELECT :id", dialect) == "sources.books.sql: the parameter :id is not declared"
        assert refused("SELECT 1", dialect, id=int) == "sources.books.parameters.id: the statement has none"
        with pytest.raises(ConfigurationError, match=r"sources\.books\.parameters\.name: a default of no parameter"):
            SqlStatement("books", "SELECT 1", dialect, parameters={}, defaults={"name": "x"})

    def test_defaults_need_not_be_given(self, dialect: Dialect) -> None:
        made = statement("SELECT :id, :name", dialect, id=7)
        assert made.required == {"name"}
        assert made.positional({"name": "n"}) == [7, "n"]
        assert made.positional({"name": "n", "id": 8}) == [8, "n"]

    def test_the_number_of_results_is_known_to_all(self, dialect: Dialect) -> None:
        made = statement("SELECT 1 LIMIT :max_results", dialect)
        assert made.parameters == {"max_results": int}
        assert made.required == frozenset()
        assert made.positional({}) == [UNLIMITED]
        assert made.positional({"max_results": 5}) == [5]


@given(st.text(alphabet="ab1:'\"$-/*\n;[]`?@ EeıÄ\\", max_size=40), st.sampled_from(list(Dialect)))
def test_any_text_is_kept_or_refused(text: str, dialect: Dialect) -> None:
    try:
        made = SqlStatement("books", text, dialect, parameters={}, defaults={})
    except ConfigurationError:
        return
    assert text.strip().startswith(made.text)
