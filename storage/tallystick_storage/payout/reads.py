"""Payouts as they are shown: one with its story, and lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.listing import Key, candidates
from tallystick_storage.payout.payouts import COLUMNS

_SHOWN = text(f"""
    select {COLUMNS}, nullif(d.next_attempt_time, 'infinity') as next_attempt_time from payout p left join due d on d.demand_id = 'p-' || p.payout_id
    where p.payout_id = any (cast(:ids as text[])) order by p.payout_id
""")
_HISTORY = text("""
    select version, from_state, to_state, cause, actor, reason, create_time from payout_history where payout_id = :id order by version
""")


def shown(connection: Connection, payout_ids: list[str]) -> dict[str, Row[Any]]:
    """Payouts, those that exist, each with the time of its next attempt."""
    return {row.payout_id: row for row in connection.execute(_SHOWN, {"ids": payout_ids})}


def history(connection: Connection, payout_id: str) -> Sequence[Row[Any]]:
    """Every move of a payout, oldest first."""
    return connection.execute(_HISTORY, {"id": payout_id}).all()


@dataclass(frozen=True, slots=True)
class PayoutFilter:
    """Which payouts to list; None does not filter."""

    owner: str | None = None
    seller_account: str | None = None
    state: str | None = None
    payout_batch_id: str | None = None
    create_time_from: datetime | None = None
    create_time_until: datetime | None = None


_FILTERS = {
    "owner": "p.owner = :owner",
    "seller_account": "p.seller_account = :seller_account",
    "state": "p.state = :state",
    "payout_batch_id": "p.payout_batch_id = :payout_batch_id",
}
_KEYS = {
    **{name: f"k.{name} = :{name}" for name in _FILTERS},
    "payout_batch_id": "k.payout_batch_id = :payout_batch_id and k.payout_batch_id <> ''",  # as its index says
    "create_time_from": "k.create_time >= :create_time_from",
    "create_time_until": "k.create_time < :create_time_until",
}
_WORKING = ("CREATED", "READY", "SUBMITTING")
# All payouts that are being worked on are due, and few are.
_AT_WORK = "(select p.* from due d cross join lateral (select * from payout p where p.payout_id = substr(d.demand_id, 3) and d.demand_id like 'p-%' offset 0) p)"


def list_(connection: Connection, wanted: PayoutFilter, before: Key | None, most: int) -> tuple[Sequence[Row[Any]], Key | None]:
    """Payouts, newest first, before a given key; and down to which all have been looked at, None: to the end."""
    table, found_by = _source(wanted)
    others = [name for name in _FILTERS if name not in found_by and getattr(wanted, name) is not None]
    by = {name: condition for name, condition in _KEYS.items() if name in (*found_by, "create_time_from", "create_time_until")}
    keys = candidates(connection, table, "payout_id", by, wanted, before, sifted=bool(others))
    statement = text(f"""
        select {COLUMNS}, nullif(d.next_attempt_time, 'infinity') as next_attempt_time from (
            select p.* from ({keys.select}) k
            cross join lateral (select * from payout p where p.payout_id = k.payout_id offset 0) p
            where {" and ".join(_FILTERS[name] for name in others) or "true"} order by k.create_time desc, k.payout_id desc limit :most) p
        left join lateral (select next_attempt_time from due d where d.demand_id = 'p-' || p.payout_id offset 0) d on true
        order by p.create_time desc, p.payout_id desc
    """)
    values = {name: getattr(wanted, name) for name in others}
    return connection.execute(statement, {**keys.values, **values, "most": most}).all(), keys.low


def _source(wanted: PayoutFilter) -> tuple[str, Sequence[str]]:
    """The table in which what is wanted is together, in the order of an index, and the filters that it is found by."""
    for name in ("payout_batch_id", "seller_account"):
        if getattr(wanted, name) is not None:
            return "payout", [name]
    if wanted.state in _WORKING:
        return _AT_WORK, ["owner", "state"]
    if wanted.state is not None and wanted.state != "PAID":
        return "payout_in_state", ["owner", "state"]
    return "payout", ["owner"]
