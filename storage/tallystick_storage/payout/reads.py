"""Payouts as they are shown: one with its story, and lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.listing import newest_first
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
    "payout_batch_id": "p.payout_batch_id = :payout_batch_id and p.payout_batch_id <> ''",
    "create_time_from": "p.create_time >= :create_time_from",
    "create_time_until": "p.create_time < :create_time_until",
}


_WORKING = ("CREATED", "READY", "SUBMITTING")


def list_(connection: Connection, wanted: PayoutFilter, before: tuple[datetime, str] | None, most: int) -> Sequence[Row[Any]]:
    """Payouts, newest first, before a given (create_time, id)."""
    where, values = newest_first(_FILTERS, wanted, "(p.create_time, p.payout_id)", before)
    key, source = _source(wanted, before)
    statement = text(f"""
        select {COLUMNS}, nullif(d.next_attempt_time, 'infinity') as next_attempt_time
        from (select p.* from {source} {where} order by {key}.create_time desc, {key}.payout_id desc limit :most) p
        left join lateral (select next_attempt_time from due d where d.demand_id = 'p-' || p.payout_id offset 0) d on true
        order by p.create_time desc, p.payout_id desc
    """)
    return connection.execute(statement, {**values, "most": most}).all()


def _source(wanted: PayoutFilter, before: tuple[datetime, str] | None) -> tuple[str, str]:
    """Payouts as `p`, from a table that has those of a state together, if there is one; and the name of what they are in order of."""
    if wanted.state is None or wanted.state == "PAID" or wanted.seller_account is not None:
        return "p", "payout p"
    if wanted.state in _WORKING:  # few are, and all of them are due
        return (
            "p",
            "due d cross join lateral (select * from payout p where p.payout_id = substr(d.demand_id, 3) and d.demand_id like 'p-%' offset 0) p",
        )
    found = "select p.create_time, p.payout_id from payout_in_state p where p.state = :state"
    if wanted.owner is not None:
        found += " and p.owner = :owner"
    for name in ("create_time_from", "create_time_until"):
        if getattr(wanted, name) is not None:
            found += f" and {_FILTERS[name]}"
    if before is not None:
        found += " and (p.create_time, p.payout_id) < (:before_time, :before_id)"
    source = f"""
        ({found} order by p.create_time desc, p.payout_id desc) k
        cross join lateral (select * from payout p where p.payout_id = k.payout_id offset 0) p"""
    return "k", source
