"""The sandbox provider's logs of charges and transfers, keyed by idempotency key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Row, text


@dataclass(slots=True)
class LoggedRequest:
    """A request as decided when its key was first used. `subject` is the id of the charge or
    payout. `fingerprint` is in hex, `amount` in minor units.
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
    """The argument of the fault."""
    returned_amount: int | None = None


class RequestLog:
    """The log of one kind of requests. `subject_column`: the table's column with the id of the
    charge or payout.
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
        """Stores the requests whose keys are new, and returns those keys."""
        return set(connection.execute(self._insert, {"entries": encode_rows(entries)}).scalars())

    def find(
        self, connection: Connection, keys: list[str], window_seconds: float
    ) -> dict[str, Row[Any]]:
        """The last request of each key. `is_expired`: it is older than `window_seconds`, the time
        for which keys are honored.
        """
        return {
            row.key: row
            for row in connection.execute(
                self._find, {"keys": keys, "window": f"{window_seconds} seconds"}
            )
        }

    def find_latest(self, connection: Connection, subject: str) -> Row[Any] | None:
        """The newest request for a subject, locked. `age` is in seconds."""
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
    """Sets the state of a pending charge, or its next pending code."""
    connection.execute(
        _RESOLVE_CHARGE, {"key": key, "generation": generation, "state": state, "code": code}
    )


def update_transfer(
    connection: Connection, key: str, generation: int, state: str, returned_amount: int | None
) -> None:
    """Sets the state of a transfer, and its returned amount."""
    connection.execute(
        _UPDATE_TRANSFER,
        {"key": key, "generation": generation, "state": state, "returned_amount": returned_amount},
    )
