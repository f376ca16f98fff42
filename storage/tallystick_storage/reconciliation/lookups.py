"""Breaks about charges and payouts that their service is asked to look up."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from tallystick_core.reconciliation.breaks import KINDS_LOOKED_UP
from tallystick_storage.pagination import PageKey
from tallystick_storage.sql import Connection, Query

_PAGE = 200


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
    """
    select b.break_id, b.account, l.line_type, l.reference, l.charge_reference, l.client_reference,
        b.create_time
    from break b cross join lateral (
        select * from statement_line l where l.break_id = b.break_id
        order by l.file_number, l.number limit 1) l
    where b.state = 'OPEN' and b.kind = any (cast(:kinds as text[]))
        and (b.create_time, b.break_id) > (:after_time, :after_id) and l.client_reference <> ''
    order by b.create_time, b.break_id limit :limit
    """,
)


def list_open(connection: Connection, after: PageKey) -> list[LookupRow]:
    """A page of the open breaks that a lookup may end, after one of them, oldest first, each with
    its first line, which has an id of ours.
    """
    return _LIST.all(
        connection,
        kinds=sorted(KINDS_LOOKED_UP),
        after_time=after[0],
        after_id=after[1],
        limit=_PAGE,
    )
