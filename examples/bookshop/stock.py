"""The tables of the bookshop and what is in them; the same for SQLite and PostgreSQL."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing

CITIES = ("Aarhus", "Bergen", "Coimbra", "Dresden", "Espoo")

TABLES = (
    "CREATE TABLE IF NOT EXISTS city (name TEXT PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS contact ("
    "email TEXT PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL REFERENCES city (name))",
    "CREATE TABLE IF NOT EXISTS book (id INTEGER PRIMARY KEY, title TEXT NOT NULL, author TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS purchase (reader INTEGER, book INTEGER REFERENCES book (id),"
    " PRIMARY KEY (reader, book))",
    "CREATE INDEX IF NOT EXISTS purchase_book ON purchase (book)",
)

_WORDS = ("Silent", "Golden", "Hidden", "Broken", "Northern", "Paper", "Winter", "Distant", "Burning", "Last")
_THINGS = ("River", "Garden", "Letter", "Island", "Harbour", "Machine", "Orchard", "Mountain", "Lantern", "Bridge")
_AUTHORS = ("A. Lindqvist", "M. Okafor", "T. Brandt", "S. Moreau", "J. Castellanos", "R. Haugen", "Y. Tanaka")


def rows() -> dict[str, list[tuple[object, ...]]]:
    """Return what is in the tables of a new shop, by table; always the same."""
    chance = random.Random(7)
    titles = [f"The {word} {thing}" for word in _WORDS for thing in _THINGS]
    books: list[tuple[object, ...]] = [
        (number, title, chance.choice(_AUTHORS)) for number, title in enumerate(titles, start=1)
    ]
    purchases: set[tuple[object, ...]] = set()
    for reader in range(1, 201):
        # A few books are read by many, most by some.
        purchases.update((reader, 1 + int(len(books) * chance.random() ** 2)) for _ in range(8))
    return {"city": [(city,) for city in CITIES], "book": books, "purchase": sorted(purchases, key=str)}


async def prepare(url: str) -> None:
    """Make the tables in the database at ``url`` unless they are there, and fill them if they are empty."""
    if url.startswith("sqlite:"):
        _prepare_sqlite(url.removeprefix("sqlite:"))
        return
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            for statement in TABLES:
                await connection.execute(statement)
            if not await connection.fetchval("SELECT count(*) FROM book"):
                for table, filling in rows().items():
                    await connection.executemany(_insert(table, [f"${n + 1}" for n in range(len(filling[0]))]), filling)
    finally:
        await connection.close()


def _prepare_sqlite(path: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in TABLES:
            database.execute(statement)
        if not database.execute("SELECT count(*) FROM book").fetchone()[0]:
            for table, filling in rows().items():
                database.executemany(_insert(table, ["?"] * len(filling[0])), filling)


def _insert(table: str, places: Sequence[str]) -> str:
    return f"INSERT INTO {table} VALUES ({', '.join(places)})"
