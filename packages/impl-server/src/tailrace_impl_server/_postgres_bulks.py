"""The bulks of a PostgreSQL database: one row for each, which all servers on it respect.

The row is logged, what is staged is not: a crash of the database empties the tables for staging and leaves the rows, so
that what was lost is seen. Who stages or commits holds the row; who fences or purges a bulk changes it first.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from tailrace_common_api import BulkResult, StorageFailure

if TYPE_CHECKING:
    from tailrace_impl_server._postgres import Connection, PostgresDatabase

_log = logging.getLogger(__name__)

MAKING_TABLES = 7_233_271_451_862
"""Advisory lock of who makes tables."""
_ALIVE = 723_327_145
"""Class of the advisory locks that servers hold as long as they are connected."""
_RECONNECT = 0.5
_LOOK_SECONDS = 15.0
"""Time between two looks whether the connection that tells of this server works."""
_LOCK_SECONDS = 60.0
"""Time after which the server's own lock is free, at the latest, when its earlier connection was lost."""
_ASK_SECONDS = 10.0

KEY_INDEX = "tailrace_bulks_key"
"""Keeps two bulks from having one key."""
TABLES = f"""
CREATE TABLE IF NOT EXISTS tailrace_bulks (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    collection text NOT NULL,
    principal text NOT NULL,
    key text,
    priority integer NOT NULL,
    -- Which server it belongs to, and where its records are staged; null when nothing is.
    owner integer NOT NULL,
    staging text,
    state text NOT NULL DEFAULT 'staging' CHECK (state IN ('staging', 'fenced', 'committed')),
    staged bigint NOT NULL DEFAULT 0,
    touched_at timestamptz NOT NULL DEFAULT now(),
    -- The result.
    records bigint,
    size bigint,
    digest bytea,
    committed_at double precision
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX IF NOT EXISTS {KEY_INDEX} ON tailrace_bulks (principal, key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS tailrace_bulks_collection ON tailrace_bulks (collection, committed_at);
CREATE SEQUENCE IF NOT EXISTS tailrace_owners AS integer CYCLE;
"""

FIND_KEY = "SELECT * FROM tailrace_bulks WHERE principal = $1 AND key = $2 FOR UPDATE NOWAIT"
FIND_ID = "SELECT * FROM tailrace_bulks WHERE id = $1 FOR UPDATE NOWAIT"
INSERT = """
INSERT INTO tailrace_bulks (id, collection, principal, key, priority, owner, staging)
VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING number
"""
FENCE = "UPDATE tailrace_bulks SET state = 'fenced', key = NULL WHERE number = $1"
FENCE_ID = """
UPDATE tailrace_bulks
SET state = CASE state WHEN 'committed' THEN state ELSE 'fenced' END, key = CASE state WHEN 'committed' THEN key END
WHERE id = $1 AND staging IS NOT NULL RETURNING number, staging
"""
# The count need not be on disk when it is answered: a crash of the database that loses it loses what was staged, too,
# and the sum that is known here is compared with what is there.
COUNT = """
UPDATE tailrace_bulks SET staged = staged + $3, touched_at = now()
WHERE number = $1 AND state = 'staging' AND staged = $2
RETURNING set_config('synchronous_commit', 'off', true)
"""
LOCK_STAGING = "SELECT staged FROM tailrace_bulks WHERE number = $1 AND state = 'staging' FOR UPDATE"
COMMIT = """
UPDATE tailrace_bulks SET state = 'committed', staged = 0, records = $2, size = $3, digest = $4,
    committed_at = extract(epoch FROM clock_timestamp())::double precision
WHERE number = $1 RETURNING committed_at
"""
PURGED = "UPDATE tailrace_bulks SET staging = NULL WHERE number = $1 AND state = 'committed'"
FORGET = "DELETE FROM tailrace_bulks WHERE number = $1 AND state = 'fenced'"
# Of the others only those are dead whose servers are: who is connected holds a lock. The times are the database's.
DEAD = f"""
SELECT number, staging, state FROM tailrace_bulks
WHERE collection = $1 AND staging IS NOT NULL AND CASE
    WHEN owner = $2 THEN state <> 'committed' AND touched_at <= now() - make_interval(secs => $3)
        OR state = 'committed' AND committed_at < extract(epoch FROM now()) - 60
    ELSE owner <> ALL (
        SELECT objid::bigint FROM pg_locks
        WHERE locktype = 'advisory' AND classid = {_ALIVE} AND objsubid = 2
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) END
AND number <> ALL ($4::bigint[])
FOR UPDATE SKIP LOCKED
"""
FORGET_RESULTS = """
DELETE FROM tailrace_bulks
WHERE collection = $1 AND state = 'committed' AND staging IS NULL
    AND committed_at <= extract(epoch FROM clock_timestamp()) - $2::double precision
"""


def result_of(row: Any, *, repeated: bool) -> BulkResult:
    """Return the result of a bulk that has committed."""
    return BulkResult(
        id=row["id"],
        collection=row["collection"],
        records=row["records"],
        size=row["size"],
        digest=row["digest"],
        committed_at=row["committed_at"],
        repeated=repeated,
    )


class Presence:
    """Tells other servers on a database that this one is alive: by a lock that ends with its connection."""

    def __init__(self, database: PostgresDatabase) -> None:
        """Belong to a database, which must be open while this is."""
        self._database = database
        self._connection: Any = None
        self._starts = 0
        self._changing = asyncio.Lock()
        self._returning: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self.owner = 0
        """Number of this server on the database, from the start on."""

    async def start(self) -> None:
        """Be present; counted, and after the tables have been made.

        Raises:
            StorageFailure: The database does not work.
        """
        async with self._changing:
            if not self._starts:
                connection = await self._database.connect()
                try:
                    with self._database.errors():
                        self.owner = await connection.fetchval(
                            "SELECT nextval('tailrace_owners')", timeout=_ASK_SECONDS
                        )
                        await self._hold(connection)
                except BaseException:
                    connection.terminate()
                    raise
                self._looking = asyncio.create_task(self._look(), name="tailrace-presence-looks")
            self._starts += 1

    async def close(self) -> None:
        """Be gone; once for each start."""
        async with self._changing:
            self._starts = max(0, self._starts - 1)
            if self._starts:
                return
            for task in (self._looking, self._returning):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            connection, self._connection = self._connection, None
            if connection is not None and not connection.is_closed():
                connection.terminate()

    async def _hold(self, connection: Connection) -> None:
        await connection.execute(f"SELECT pg_advisory_lock({_ALIVE}, {self.owner})", timeout=_LOCK_SECONDS)
        self._connection = connection
        connection.add_termination_listener(self._lost)

    async def _look(self) -> None:
        """Find out that the connection is lost: nothing else is asked over it."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            connection = self._connection
            if not connection.is_closed() and not await self._database.is_alive(connection):
                _log.warning("the connection that tells other servers of this one is lost; there will be another")

    def _lost(self, connection: Connection) -> None:
        if connection is self._connection and self._starts:
            self._returning = asyncio.get_running_loop().create_task(self._return(), name="tailrace-presence")

    async def _return(self) -> None:
        while True:
            connection: Any = None
            try:
                connection = await self._database.connect()
                with self._database.errors():
                    return await self._hold(connection)
            except StorageFailure as error:
                _log.debug("no connection to the database yet: %s", error)
            finally:
                if connection is not None and connection is not self._connection:
                    connection.terminate()
            await asyncio.sleep(_RECONNECT)
