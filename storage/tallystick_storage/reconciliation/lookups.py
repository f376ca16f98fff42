"""Breaks about charges and payouts that their service is asked to look up."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from tallystick_core.reconciliation.breaks import KINDS_ENDED_BY_BOOKING
from tallystick_storage.pagination import PageKey
from tallystick_storage.sql import Connection, Query

_PAGE = 200
_KINDS = ", ".join(f"'{kind}'" for kind in sorted(KINDS_ENDED_BY_BOOKING))


class LookupRow(NamedTuple):
    """A line of a statement that the ledger has no entry for, and the break that it is in."""

    break_id: str
    account: str
    line_type: str
    reference: str
    charge_reference: str
    client_reference: str
    create_time: datetime


_LIST = Query(
    LookupRow,
    f"""
    with page as materialized (
        select * from break where state = 'OPEN' and kind in ({_KINDS})
            and (create_time, break_id) > (:after_time, :after_id)
        order by create_time, break_id limit :limit)
    select b.break_id, b.account, l.line_type, l.reference, l.charge_reference, l.client_reference,
        b.create_time
    from page b cross join lateral (
        select * from statement_line l where l.break_id = b.break_id
        order by l.file_number, l.number limit 1) l
    order by b.create_time, b.break_id
    """,
)


def list_open(connection: Connection, after: PageKey) -> list[LookupRow]:
    """A page of the open breaks that a lookup may end, after one of them, oldest first, each with
    its first line. Without an id of ours there is nothing to look up.
    """
    return _LIST.all(
        connection,
        after_time=after[0],
        after_id=after[1],
        limit=_PAGE,
    )
