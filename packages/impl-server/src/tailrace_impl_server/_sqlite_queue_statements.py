"""The tables and statements of queues in SQLite; each function runs in the thread that writes.

One table has the records of all queues of a file. Claiming and answering move a record between the two partial indexes;
what waits is touched by neither. How many records there are is counted in the same transactions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from tailrace_common_api import RECORD_OVERHEAD, QueuedRecord, Settlement, Verdict
from tailrace_impl_server._queue_rules import Answers, Assignment, Candidate
from tailrace_impl_server._sql_tables import RecordTable
from tailrace_server_api import Claim, Depth

_TABLES = """
CREATE TABLE IF NOT EXISTS tailrace_work (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL DEFAULT 0,
    -- 0: ready, 1: leased, 2: delayed. Time: end of the lease or the delay, in seconds since the Unix epoch.
    state INTEGER NOT NULL DEFAULT 0,
    due_at REAL,
    attempt INTEGER NOT NULL DEFAULT 0,
    -- How many of the attempts were given back untouched.
    untried INTEGER NOT NULL DEFAULT 0,
    consumer TEXT,
    submitted_at REAL NOT NULL,
    reason TEXT,
    size INTEGER NOT NULL,
    key TEXT,
    record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS tailrace_work_ready ON tailrace_work (queue, priority DESC, id, size) WHERE state = 0;
CREATE INDEX IF NOT EXISTS tailrace_work_due ON tailrace_work (queue, state, due_at) WHERE state > 0;

CREATE TABLE IF NOT EXISTS tailrace_work_answers (
    id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (id, attempt)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tailrace_work_answers_until ON tailrace_work_answers (until);

CREATE TABLE IF NOT EXISTS tailrace_work_counts (
    queue TEXT PRIMARY KEY,
    records INTEGER NOT NULL
) WITHOUT ROWID;
"""


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables, unless they are there."""
    for statement in _TABLES.split(";"):
        connection.execute(statement)


def fed(queue: str) -> RecordTable:
    """Return the table as bulks of work fill it; the name of a queue has no character that SQL could stumble over."""
    return RecordTable(
        name="tailrace_work",
        columns={
            "queue": f"'{queue}'",
            "priority": "bulk.priority",
            "submitted_at": "(julianday('now') - 2440587.5) * 86400.0",
            "size": f"length(staged.record) + coalesce(length(CAST(staged.key AS BLOB)), 0) + {RECORD_OVERHEAD}",
            "key": "staged.key",
            "record": "staged.record",
        },
        then=f"INSERT INTO main.tailrace_work_counts VALUES ('{queue}', ?1)"
        " ON CONFLICT (queue) DO UPDATE SET records = records + excluded.records",
    )


_READY = """
SELECT id, size FROM tailrace_work WHERE queue = ? AND state = 0 ORDER BY priority DESC, id
"""
_LEASE = """
UPDATE tailrace_work SET state = 1, attempt = attempt + 1, due_at = ?, consumer = ? WHERE id IN ({ids})
RETURNING id, attempt, priority, record, key
"""
_ACKNOWLEDGE = "DELETE FROM tailrace_work WHERE queue = ? AND attempt = ? AND id IN ({ids}) RETURNING id"
_COUNT = """
INSERT INTO tailrace_work_counts VALUES (?, ?) ON CONFLICT (queue) DO UPDATE SET records = records + excluded.records
"""
_NOTE = "INSERT OR REPLACE INTO tailrace_work_answers VALUES (?, ?, ?, ?)"
_FORGET = "DELETE FROM tailrace_work_answers WHERE until < ?"
_CURRENT = "id = ? AND attempt = ? AND queue = ?"
# The index has what is not ready: SQLite uses it where a statement says the same in the same words.
_DUE = "state > 0 AND due_at <= ?"
_CHUNK = 200
"""Most records of one statement; there is one for each number of them, and a connection keeps those used last."""


class Terms:
    """The terms of one queue, and the statements under them."""

    def __init__(self, queue: str, dead: str, lease: float, max_attempts: int) -> None:
        """Note the terms: names of the queue and of its dead letters, which are the same for a queue of these."""
        self.queue = queue
        self.dead = dead
        self.lease = lease
        self.max_attempts = max_attempts

    # Handing out.

    def claim(
        self, connection: sqlite3.Connection, claims: Sequence[Claim], now: float
    ) -> tuple[list[list[QueuedRecord]], int]:
        """Lease records to consumers; return those of each, and how many have become dead letters."""
        dead = self._take_back(connection, now)
        assignment = Assignment(claims)
        candidates = connection.execute(_READY, (self.queue,))
        while limit := min(assignment.wanted, _CHUNK):
            found = list(map(Candidate._make, candidates.fetchmany(limit)))
            if assignment.deal(found) is not None or len(found) < limit:
                break
        candidates.close()
        until = now + self.lease
        handed = [
            _leased(connection, given, until, claim.consumer)
            for claim, given in zip(claims, assignment.given, strict=True)
        ]
        return handed, dead

    def _take_back(self, connection: sqlite3.Connection, now: float) -> int:
        """Take back the records whose lease or delay has ended; return how many of them are dead letters."""
        dead = 0
        due = (self.queue, now)
        connection.execute(
            f"UPDATE tailrace_work SET state = 0, due_at = NULL WHERE queue = ? AND state = 2 AND {_DUE}", due
        )
        if self.max_attempts:
            # Before the others are taken back: these two statements find the same records otherwise.
            dead = connection.execute(
                "UPDATE tailrace_work SET state = 0, due_at = NULL, queue = ?,"
                " reason = 'the lease of attempt ' || attempt || ', the last one, has ended'"
                f" WHERE queue = ? AND state = 1 AND {_DUE} AND attempt - untried >= ?",
                (self.dead, *due, self.max_attempts),
            ).rowcount
            self._died(connection, dead)
        # The time is kept: the consumer may still extend a lease that nobody has got since.
        connection.execute(f"UPDATE tailrace_work SET state = 0 WHERE queue = ? AND state = 1 AND {_DUE}", due)
        return dead

    def release(self, connection: sqlite3.Connection, deliveries: Sequence[tuple[int, int]]) -> None:
        """Give records back untouched."""
        connection.executemany(
            f"UPDATE tailrace_work SET state = 0, due_at = NULL, untried = untried + 1 WHERE {_CURRENT} AND state = 1",
            [(*delivery, self.queue) for delivery in deliveries],
        )

    # Answers.

    def settle(
        self, connection: sqlite3.Connection, settlements: Sequence[Settlement], answers: Answers, now: float
    ) -> list[bool]:
        """Take answers, and return for each whether it counts."""
        taken: dict[Verdict, set[tuple[int, int]]] = {}
        # An extension goes first: its consumer has asked for it before it answered.
        for verdict in (Verdict.EXTEND, Verdict.ACKNOWLEDGE, Verdict.REQUEUE, Verdict.DEAD_LETTER):
            given = answers.by_verdict.get(verdict)
            if given and verdict is Verdict.ACKNOWLEDGE:
                taken[verdict] = self._acknowledged(connection, given)
            elif given:
                taken[verdict] = {item[:2] for item in given if self._take(connection, item, now)}
        if gone := taken.get(Verdict.ACKNOWLEDGE):
            connection.execute(_COUNT, (self.queue, -len(gone)))
        until = now + self.lease
        connection.executemany(
            _NOTE,
            [
                (*delivery, verdict.value, until)
                for verdict, deliveries in taken.items()
                if verdict is not Verdict.EXTEND
                for delivery in deliveries
            ],
        )
        connection.execute(_FORGET, (now,))
        return [item[:2] in taken.get(item.verdict, ()) or self._answered(connection, item) for item in settlements]

    def _acknowledged(self, connection: sqlite3.Connection, items: Sequence[Settlement]) -> set[tuple[int, int]]:
        """Delete what is acknowledged; return the deliveries for which that counts."""
        by_attempt: dict[int, list[int]] = {}
        for item in items:
            by_attempt.setdefault(item.attempt, []).append(item.id)
        return {
            (row[0], attempt)
            for attempt, ids in by_attempt.items()
            for row in _for_each(connection, _ACKNOWLEDGE, (self.queue, attempt), ids)
        }

    def _take(self, connection: sqlite3.Connection, item: Settlement, now: float) -> bool:
        current = (item.id, item.attempt, self.queue)
        match item.verdict:
            case Verdict.EXTEND:
                taken = connection.execute(
                    "UPDATE tailrace_work SET state = 1, due_at = ?"
                    f" WHERE {_CURRENT} AND (state = 1 OR state = 0 AND due_at IS NOT NULL)",
                    (now + (item.seconds or self.lease), *current),
                )
            case Verdict.REQUEUE:
                if self.max_attempts:
                    exhausted = connection.execute(
                        "UPDATE tailrace_work SET state = 0, due_at = NULL, reason = ?, queue = ?"
                        f" WHERE {_CURRENT} AND attempt - untried >= ?",
                        (item.reason, self.dead, *current, self.max_attempts),
                    )
                    if exhausted.rowcount:
                        self._died(connection, 1)
                        return True
                state, due_at = (2, now + item.seconds) if item.seconds > 0 else (0, None)
                taken = connection.execute(
                    f"UPDATE tailrace_work SET state = ?, due_at = ?, reason = ? WHERE {_CURRENT}",
                    (state, due_at, item.reason, *current),
                )
            case Verdict.DEAD_LETTER:
                # What is refused as a dead letter rests for a lease: it would come again at once, for ever.
                state, due_at = (2, now + self.lease) if self.queue == self.dead else (0, None)
                taken = connection.execute(
                    f"UPDATE tailrace_work SET state = ?, due_at = ?, reason = ?, queue = ? WHERE {_CURRENT}",
                    (state, due_at, item.reason, self.dead, *current),
                )
                if self.queue != self.dead:
                    self._died(connection, taken.rowcount)
            case Verdict.ACKNOWLEDGE:
                raise ValueError("acknowledgements are taken together")
        return bool(taken.rowcount)

    def _answered(self, connection: sqlite3.Connection, item: Settlement) -> bool:
        """Tell whether an answer has been taken before."""
        row = connection.execute(
            "SELECT verdict FROM tailrace_work_answers WHERE id = ? AND attempt = ?", item[:2]
        ).fetchone()
        return row is not None and row[0] == item.verdict.value

    def _died(self, connection: sqlite3.Connection, records: int) -> None:
        if records:
            connection.executemany(_COUNT, [(self.queue, -records), (self.dead, records)])

    # Looking.

    def next_due(self, connection: sqlite3.Connection) -> float | None:
        """Return when the next lease or delay ends."""
        soonest = "SELECT min(due_at) FROM tailrace_work WHERE queue = ? AND state = ? AND state > 0"
        times = [connection.execute(soonest, (self.queue, state)).fetchone()[0] for state in (1, 2)]
        return min((time for time in times if time is not None), default=None)

    def depth(self, connection: sqlite3.Connection, now: float) -> Depth:
        """Count the records."""
        running = "SELECT count(*) FROM tailrace_work WHERE queue = ? AND state = ? AND state > 0 AND due_at > ?"
        leased, delayed = (connection.execute(running, (self.queue, state, now)).fetchone()[0] for state in (1, 2))
        total = self._count(connection, self.queue)
        dead = 0 if self.queue == self.dead else self._count(connection, self.dead)
        return Depth(ready=total - leased - delayed, delayed=delayed, in_flight=leased, dead=dead)

    def _count(self, connection: sqlite3.Connection, queue: str) -> int:
        row = connection.execute("SELECT records FROM tailrace_work_counts WHERE queue = ?", (queue,)).fetchone()
        return 0 if row is None else row[0]


def _leased(connection: sqlite3.Connection, ids: Sequence[int], until: float, consumer: str) -> list[QueuedRecord]:
    """Lease records to a consumer, and return them in the order of their ids here."""
    leased = {row[0]: QueuedRecord._make(row) for row in _for_each(connection, _LEASE, (until, consumer), ids)}
    # A statement returns its rows in any order.
    return [leased[record] for record in ids]


def _for_each(
    connection: sqlite3.Connection, statement: str, parameters: Sequence[object], ids: Sequence[int]
) -> list[Sequence[Any]]:
    """Run a statement with these parameters for records of these ids, many at a time; return what it returns."""
    rows: list[Sequence[Any]] = []
    for start in range(0, len(ids), _CHUNK):
        some = ids[start : start + _CHUNK]
        text = statement.format(ids=", ".join("?" * len(some)))
        rows += connection.execute(text, (*parameters, *some)).fetchall()
    return rows
