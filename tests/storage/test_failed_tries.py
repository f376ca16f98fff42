"""Failed tries are stored whatever the clock of the database does."""

from __future__ import annotations

import asyncio
from contextlib import closing

import psycopg

from tallystick_core.operations.kind import KindName
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_storage import failed_tries
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection

_CLOCK_THAT_IS_SET_BACK = """
    create sequence payment.reading;
    grant usage on sequence payment.reading to public;
    create or replace function payment.clock() returns timestamptz language sql volatile as
        $$select timestamptz '2026-12-01Z' - nextval('payment.reading') * interval '1 second'$$
"""


def test_a_try_is_stored_while_the_clock_is_set_back(scratch_database: DatabaseUrls) -> None:
    """A try begins and ends at one time. Otherwise its end would be before its start, which the
    database rejects.
    """
    new_try = failed_tries.NewFailedTry(
        KindName.CHARGE, "o-1", 1, "stripe", "SEND", "NO_ANSWER", "", "", False, False
    )

    def store(connection: Connection) -> list[failed_tries.FailedTryRow]:
        failed_tries.insert(connection, [new_try])
        return failed_tries.list_latest(connection, KindName.CHARGE, ["o-1"], 10)

    with psycopg.connect(scratch_database.admin) as admin:
        admin.execute(_CLOCK_THAT_IS_SET_BACK)
    with closing(Database(scratch_database.service("payment"), connections=1)) as database:
        (row,) = asyncio.run(database.transact(store))
    assert row.create_time == row.last_time
