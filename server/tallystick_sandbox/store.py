"""The sandbox provider's logs of charges and transfers, keyed by idempotency key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(slots=True)
class LoggedRequest:
    """A request as decided when its key was first used. `provider` is the name of the sandbox,
    `subject` the id of the charge or payout. `fingerprint` is in hex, `amount` in minor units.
    """

    key: str
    generation: int
    fingerprint: str
    provider: str
    subject: str
    reference: str
    state: str
    amount: int
    currency: str
    fault: str
    code: str
    """The argument of the fault."""
    returned_amount: int | None = None


@dataclass(frozen=True, slots=True)
class LogRow:
    """A request as stored. `returned_amount` is None for a charge."""

    key: str
    generation: int
    fingerprint: bytes
    subject: str
    reference: str
    state: str
    amount: int
    currency: str
    fault: str
    code: str
    returned_amount: int | None


@dataclass(frozen=True, slots=True)
class KeyedLogRow(LogRow):
    """The last request of a key. `is_expired`: the key is not honored any more."""

    is_expired: bool


@dataclass(frozen=True, slots=True)
class LatestLogRow(LogRow):
    """The newest request for a subject. `age` is in seconds."""

    age: Decimal


class RequestLog:
    """The log of one kind of requests. `subject_column`: the table's column with the id of the
    charge or payout.
    """

    def __init__(self, table: str, subject_column: str) -> None:
        select_list = columns(LogRow, "l").replace("l.subject", f"l.{subject_column} as subject")
        if table != "transfer":
            select_list = select_list.replace("l.returned_amount", "null as returned_amount")
        self._insert = text(f"""
            insert into {table} (key, generation, fingerprint, provider, {subject_column},
                reference, state, amount, currency, fault, code, create_time)
            select key, generation, decode(fingerprint, 'hex'), provider, subject, reference, state,
                amount, currency, fault, code, clock()
            from json_to_recordset(cast(:entries as json))
                as r (key text, generation int, fingerprint text, provider text, subject text,
                reference text, state text,
                amount bigint, currency text, fault text, code text) order by key
            on conflict do nothing returning key
        """)
        self._find = Query(
            KeyedLogRow,
            f"""
            select distinct on (key) {select_list},
                create_time < (select clock()) - cast(:window as interval) as is_expired
            from {table} l where key = any (cast(:keys as text[])) order by key, generation desc
            """,
        )
        self._find_latest = Query(
            LatestLogRow,
            f"""
            select {select_list}, extract(epoch from clock() - create_time) as age
            from {table} l where {subject_column} = :subject and provider = :provider
                order by create_time desc, generation desc limit 1 for update
            """,
        )

    def insert(self, connection: Connection, entries: Sequence[LoggedRequest]) -> set[str]:
        """Stores the requests whose keys are new, and returns those keys."""
        return set(connection.execute(self._insert, {"entries": encode_rows(entries)}).scalars())

    def find(
        self, connection: Connection, keys: list[str], window_seconds: float
    ) -> dict[str, KeyedLogRow]:
        """The last request of each key, expired if it is older than `window_seconds`, the time for
        which keys are honored.
        """
        rows = self._find.all(connection, keys=keys, window=f"{window_seconds} seconds")
        return {row.key: row for row in rows}

    def find_latest(
        self, connection: Connection, provider: str, subject: str
    ) -> LatestLogRow | None:
        """The newest request to a sandbox for a subject, locked."""
        return self._find_latest.one_or_none(connection, provider=provider, subject=subject)


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
