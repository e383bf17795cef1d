"""Settings of a server that has a collection of contacts and sources, over a table in SQLite."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def record_settings(folder: Path) -> str:
    """Make the table, and return the settings that declare what is on it."""
    path = folder / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE contacts (name TEXT NOT NULL, email TEXT NOT NULL UNIQUE)")
        connection.commit()
    return f"""
[databases.shop]
url = "sqlite:{path}"

[collections.contacts]
database = "shop"
table = "contacts"
columns = ["name", "email"]

[sources.contacts]
database = "shop"
sql = "SELECT name, email FROM contacts ORDER BY name"

[sources.named]
database = "shop"
sql = "SELECT name, email FROM contacts WHERE name = :name"
parameters = {{ name = "text" }}

[sources.failing]
function = "example_sources:failing"

[sources.ticks]
function = "example_sources:ticks"
"""
