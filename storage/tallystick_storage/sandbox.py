"""What the sandbox provider charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.database import rows


@dataclass(slots=True)
class NewCharge:
    """A charge as it was decided when its key first came; `fingerprint` in hex."""

    key: str
    generation: int
    fingerprint: str
    charge_id: str
    reference: str
    state: str
    amount: int
    currency: str
    code: str


_INSERT = text("""
    insert into charge
    select key, generation, decode(fingerprint, 'hex'), charge_id, reference, state, amount, currency, code, clock()
    from json_to_recordset(cast(:charges as json)) as r (key text, generation int, fingerprint text, charge_id text, reference text, state text, amount bigint,
        currency text, code text) order by key
    on conflict do nothing returning key
""")
_FIND = text("""
    select distinct on (key) key, generation, fingerprint, charge_id, reference, state, amount, currency, code,
        create_time < clock() - cast(:window as interval) as forgotten
    from charge where key = any (cast(:keys as text[])) order by key, generation desc
""")


def insert(connection: Connection, charges: Sequence[NewCharge]) -> set[str]:
    """Stores charges under keys that are new, and returns those keys."""
    return set(connection.execute(_INSERT, {"charges": rows(charges)}).scalars())


def find(connection: Connection, keys: list[str], window: float) -> dict[str, Row[Any]]:
    """The last charge under each key; `forgotten` ones are older than the window in seconds for which keys are honoured."""
    return {row.key: row for row in connection.execute(_FIND, {"keys": keys, "window": f"{window} seconds"})}


_LAST_OF = text("select * from charge where charge_id = :charge_id order by create_time desc, generation desc limit 1 for update")
_RESOLVE = text("update charge set state = :state, code = :code where key = :key and generation = :generation")


def last_of(connection: Connection, charge_id: str) -> Row[Any] | None:
    """The newest charge of an id, locked."""
    return connection.execute(_LAST_OF, {"charge_id": charge_id}).one_or_none()


def resolve(connection: Connection, key: str, generation: int, state: str, code: str) -> None:
    """Sets the state of a charge that was pending."""
    connection.execute(_RESOLVE, {"key": key, "generation": generation, "state": state, "code": code})
