"""What the sandbox provider did: a log of charges and one of transfers, each kept by idempotency key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.database import rows


@dataclass(slots=True)
class Entry:
    """A demand as it was decided when its key first came; `subject` is the id of what was demanded, `fingerprint` in hex, `amount` in minor units."""

    key: str
    generation: int
    fingerprint: str
    subject: str
    reference: str
    state: str
    amount: int
    currency: str
    fault: str
    code: str
    """What the fault was told."""
    returned_amount: int | None = None


class Log:
    """One kind of demands. `subject`: the column of its table with the id of what was demanded."""

    def __init__(self, table: str, subject: str) -> None:
        columns = f"key, generation, fingerprint, {subject}, reference, state, amount, currency, fault, code, create_time"
        shown = f"key, generation, fingerprint, {subject} as subject, reference, state, amount, currency, fault, code, {'' if table == 'transfer' else 'null as '}returned_amount"
        self._insert = text(f"""
            insert into {table} ({columns})
            select key, generation, decode(fingerprint, 'hex'), subject, reference, state, amount, currency, fault, code, clock()
            from json_to_recordset(cast(:entries as json)) as r (key text, generation int, fingerprint text, subject text, reference text, state text,
                amount bigint, currency text, fault text, code text) order by key
            on conflict do nothing returning key
        """)
        self._find = text(f"""
            select distinct on (key) {shown}, create_time < (select clock()) - cast(:window as interval) as forgotten
            from {table} where key = any (cast(:keys as text[])) order by key, generation desc
        """)
        self._last = text(f"""
            select {shown}, extract(epoch from clock() - create_time) as age
            from {table} where {subject} = :subject order by create_time desc, generation desc limit 1 for update
        """)

    def insert(self, connection: Connection, entries: Sequence[Entry]) -> set[str]:
        """Stores demands under keys that are new, and returns those keys."""
        return set(connection.execute(self._insert, {"entries": rows(entries)}).scalars())

    def find(self, connection: Connection, keys: list[str], window: float) -> dict[str, Row[Any]]:
        """The last demand under each key; `forgotten` ones are older than the window in seconds for which keys are honoured."""
        return {row.key: row for row in connection.execute(self._find, {"keys": keys, "window": f"{window} seconds"})}

    def last_of(self, connection: Connection, subject: str) -> Row[Any] | None:
        """The newest demand for something, locked; `age` in seconds."""
        return connection.execute(self._last, {"subject": subject}).one_or_none()


CHARGES = Log("charge", "charge_id")
TRANSFERS = Log("transfer", "payout_id")

_RESOLVE = text("update charge set state = :state, code = :code where key = :key and generation = :generation")
_MOVE = text("update transfer set state = :state, returned_amount = :returned_amount where key = :key and generation = :generation")


def resolve(connection: Connection, key: str, generation: int, state: str, code: str) -> None:
    """Sets the state of a charge that was pending, or what it waits for."""
    connection.execute(_RESOLVE, {"key": key, "generation": generation, "state": state, "code": code})


def move(connection: Connection, key: str, generation: int, state: str, returned_amount: int | None) -> None:
    """Sets the state of a transfer, and what came back of it."""
    connection.execute(_MOVE, {"key": key, "generation": generation, "state": state, "returned_amount": returned_amount})
