"""What the sandbox provider did: a log of charges and one of transfers, each kept by idempotency
key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.database import encode_rows


@dataclass(slots=True)
class LoggedRequest:
    """A demand as it was decided when its key first came; `subject` is the id of what was demanded,
    `fingerprint` in hex, `amount` in minor units.
    """

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


class RequestLog:
    """One kind of demands. `subject_column`: the column of its table with the id of what was
    demanded.
    """

    def __init__(self, table: str, subject_column: str) -> None:
        columns = (
            f"key, generation, fingerprint, {subject_column}, reference, state, amount, currency, "
            "fault, code, create_time"
        )
        returned_amount = "returned_amount" if table == "transfer" else "null as returned_amount"
        result_columns = (
            f"key, generation, fingerprint, {subject_column} as subject, reference, state, "
            f"amount, currency, fault, code, {returned_amount}"
        )
        self._insert = text(f"""
            insert into {table} ({columns})
            select key, generation, decode(fingerprint, 'hex'), subject, reference, state, amount,
                currency, fault, code, clock()
            from json_to_recordset(cast(:entries as json))
                as r (key text, generation int, fingerprint text, subject text, reference text,
                state text,
                amount bigint, currency text, fault text, code text) order by key
            on conflict do nothing returning key
        """)
        self._find = text(f"""
            select distinct on (key) {result_columns},
                create_time < (select clock()) - cast(:window as interval) as is_expired
            from {table} where key = any (cast(:keys as text[])) order by key, generation desc
        """)
        self._find_latest = text(f"""
            select {result_columns}, extract(epoch from clock() - create_time) as age
            from {table} where {subject_column} = :subject
                order by create_time desc, generation desc limit 1 for update
        """)

    def insert(self, connection: Connection, entries: Sequence[LoggedRequest]) -> set[str]:
        """Stores demands under keys that are new, and returns those keys."""
        return set(connection.execute(self._insert, {"entries": encode_rows(entries)}).scalars())

    def find(
        self, connection: Connection, keys: list[str], window_seconds: float
    ) -> dict[str, Row[Any]]:
        """The last demand under each key; `is_expired` ones are older than the window in seconds
        for which keys are honoured.
        """
        return {
            row.key: row
            for row in connection.execute(
                self._find, {"keys": keys, "window": f"{window_seconds} seconds"}
            )
        }

    def find_latest(self, connection: Connection, subject: str) -> Row[Any] | None:
        """The newest demand for something, locked; `age` in seconds."""
        return connection.execute(self._find_latest, {"subject": subject}).one_or_none()


CHARGES = RequestLog("charge", "charge_id")
TRANSFERS = RequestLog("transfer", "payout_id")

_RESOLVE_CHARGE = text(
    "update charge set state = :state, code = :code where key = :key and generation = :generation"
)
_UPDATE_TRANSFER = text(
    "update transfer set state = :state, returned_amount = :returned_amount where key = :key and "
    "generation = :generation"
)


def resolve_charge(
    connection: Connection, key: str, generation: int, state: str, code: str
) -> None:
    """Sets the state of a charge that was pending, or what it waits for."""
    connection.execute(
        _RESOLVE_CHARGE, {"key": key, "generation": generation, "state": state, "code": code}
    )


def update_transfer(
    connection: Connection, key: str, generation: int, state: str, returned_amount: int | None
) -> None:
    """Sets the state of a transfer, and what came back of it."""
    connection.execute(
        _UPDATE_TRANSFER,
        {"key": key, "generation": generation, "state": state, "returned_amount": returned_amount},
    )
