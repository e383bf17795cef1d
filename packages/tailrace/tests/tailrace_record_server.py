"""A server that has ends of record streams."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tailrace_processes import Server, serving

SETTINGS = """
[databases.shop]
url = "sqlite:shop.sqlite"

[collections.contacts]
schema = "contact.json"

[collections.notes]
content_type = "text/plain"

[sources.numbers]
database = "shop"
sql = '''
WITH RECURSIVE numbers(number) AS (SELECT :first UNION ALL SELECT number + 1 FROM numbers LIMIT :max_results)
SELECT number, :word AS word FROM numbers
'''
parameters = { first = "integer = 1", word = "text", max_results = "integer = 1000000000" }

[queues.letters]
"""

SCHEMA = """{"type": "object", "required": ["email"], "properties": {"email": {"type": "string", "minLength": 3}}}"""


@contextlib.contextmanager
def serving_records(folder: Path, more: str = "") -> Iterator[Server]:
    """Run a server with a few ends, and with more settings, on a folder of its own."""
    (folder / "tailrace.toml").write_text(SETTINGS + more)
    (folder / "contact.json").write_text(SCHEMA)
    with serving(folder) as server:
        yield server
