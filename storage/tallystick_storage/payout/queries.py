"""Reads for the API: a payout with its history, and lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_storage.history import TransitionRow
from tallystick_storage.pagination import PageKey, Scan, find_candidates
from tallystick_storage.payout.payouts import PayoutRow
from tallystick_storage.sql import Connection, Query, columns


@dataclass(frozen=True, slots=True)
class ScheduledPayoutRow(PayoutRow):
    """A payout with the time of its next try; None: none is scheduled."""

    next_try_time: datetime | None


_LOAD_PAYOUTS = Query(
    ScheduledPayoutRow,
    f"""
    select {columns(PayoutRow, "p")}, nullif(op.next_try_time, 'infinity') as next_try_time
    from payout p
        left join operation op on op.kind = 'payout' and op.operation_id = p.payout_id
    where p.payout_id = any (cast(:ids as text[])) order by p.payout_id
    """,
)
_LOAD_HISTORY = Query(
    TransitionRow,
    "select {columns} from payout_history where payout_id = :id order by version",
)


def load_payouts(connection: Connection, payout_ids: list[str]) -> dict[str, ScheduledPayoutRow]:
    """The payouts that exist."""
    return {row.payout_id: row for row in _LOAD_PAYOUTS.all(connection, ids=payout_ids)}


def load_history(connection: Connection, payout_id: str) -> Sequence[TransitionRow]:
    """Every transition of a payout, oldest first."""
    return _LOAD_HISTORY.all(connection, id=payout_id)


class PayoutFilter(NamedTuple):
    """Which payouts to list; None does not filter."""

    owner: str | None = None
    seller_account: str | None = None
    state: str | None = None
    payout_batch_id: str | None = None
    create_time_from: datetime | None = None
    create_time_until: datetime | None = None


_FILTER_CONDITIONS = {
    "owner": "p.owner = :owner",
    "seller_account": "p.seller_account = :seller_account",
    "state": "p.state = :state",
    "payout_batch_id": "p.payout_batch_id = :payout_batch_id",
}
_KEY_CONDITIONS = {
    **{name: f"k.{name} = :{name}" for name in _FILTER_CONDITIONS},
    # matches the index
    "payout_batch_id": "k.payout_batch_id = :payout_batch_id and k.payout_batch_id <> ''",
    "create_time_from": "k.create_time >= :create_time_from",
    "create_time_until": "k.create_time < :create_time_until",
}
_IN_PROGRESS_STATES = ("CREATED", "READY", "SUBMITTING")
# Every payout in progress has an operation, and there are few.
_IN_PROGRESS_PAYOUTS = (
    "(select p.* from operation op cross join lateral (select * from payout p where p.payout_id = "
    "op.operation_id and op.kind = 'payout' offset 0) p)"
)


def list_payouts(
    connection: Connection, filters: PayoutFilter, before: PageKey | None, limit: int
) -> Scan[ScheduledPayoutRow, PageKey]:
    """Payouts, newest first, before a given key."""
    table, index_columns = _choose_table(filters)
    other_filters = [
        name
        for name in _FILTER_CONDITIONS
        if name not in index_columns and getattr(filters, name) is not None
    ]
    key_conditions = {
        name: condition
        for name, condition in _KEY_CONDITIONS.items()
        if name in (*index_columns, "create_time_from", "create_time_until")
    }
    keys = find_candidates(
        connection,
        table,
        "payout_id",
        key_conditions,
        filters,
        before,
        has_other_filters=bool(other_filters),
    )
    query = Query(
        ScheduledPayoutRow,
        f"""
        select {columns(PayoutRow, "p")}, nullif(op.next_try_time, 'infinity') as next_try_time
        from (
            select p.* from ({keys.select}) k
            cross join lateral (select * from payout p where p.payout_id = k.payout_id offset 0) p
            where {" and ".join(_FILTER_CONDITIONS[name] for name in other_filters) or "true"}
                order by k.create_time desc, k.payout_id desc limit :limit) p
        left join lateral (select next_try_time from operation op
            where op.kind = 'payout' and op.operation_id = p.payout_id offset 0) op on true
        order by p.create_time desc, p.payout_id desc
        """,
    )
    values = {name: getattr(filters, name) for name in other_filters}
    rows = query.all(connection, limit=limit, **keys.values, **values)
    return Scan(rows, keys.last_key)


def _choose_table(filters: PayoutFilter) -> tuple[str, Sequence[str]]:
    """The table whose index returns the wanted rows together and in order, and the filters that
    this index covers.
    """
    for name in ("payout_batch_id", "seller_account"):
        if getattr(filters, name) is not None:
            return "payout", [name]
    if filters.state in _IN_PROGRESS_STATES:
        return _IN_PROGRESS_PAYOUTS, ["owner", "state"]
    if filters.state is not None and filters.state != "PAID":
        return "payout_in_state", ["owner", "state"]
    return "payout", ["owner"]
