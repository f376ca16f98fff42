"""Reads for ExplainPayout: finds a payout by any id, and lists what is stored about it.

Each read is bounded. A read of `limit` rows reads one more, so that its caller can tell whether
some are left out.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from tallystick_storage.payout.acknowledgements import PayoutReportRow
from tallystick_storage.sql import Connection, Query


class ExplainedPayoutRow(NamedTuple):
    """A payout with its next poll after the end; amounts in minor units."""

    payout_id: str
    caller: str
    seller_account: str
    amount: int
    fee: int
    net_amount: int
    currency: str
    provider: str
    state: str
    booked: bool
    payout_destination_id: str
    payout_batch_id: str
    failure_reason: str
    decline_code: str
    traceparent: str
    create_time: datetime
    next_poll_time: datetime | None
    poll_count: int | None
    now: datetime
    """The database's time of this read."""


class ExplainedTransferRow(NamedTuple):
    """A transfer with the source id of its posting; amounts in minor units."""

    provider: str
    provider_reference: str
    match: str
    source_id: str
    amount: int
    currency: str
    returned_amount: int | None
    returned_currency: str
    create_time: datetime
    return_time: datetime | None
    acknowledged_by: str


class PayoutTransitionRow(NamedTuple):
    version: int
    from_state: str | None
    to_state: str
    transition_reason: str
    actor: str
    reason: str
    create_time: datetime


# The platform's own id comes first. A provider's id is searched at each provider, because the
# indexes begin with it: one probe for each provider, however many rows it has.
_FIND = Query(
    ExplainedPayoutRow,
    """
    with recursive transfer_provider (provider) as (
        select min(provider) from transfer
        union all
        select (select min(t.provider) from transfer t where t.provider > p.provider)
            from transfer_provider p where p.provider is not null),
    attempt_provider (provider) as (
        select min(provider) from attempt where indexed_reference is not null
        union all
        select (select min(a.provider) from attempt a
                where a.provider > p.provider and a.indexed_reference is not null)
            from attempt_provider p where p.provider is not null),
    found (priority, payout_id) as (
        select 1, payout_id from payout where payout_id = :id
        union all
        select 2, t.payout_id
            from transfer_provider p
            join transfer t on t.provider = p.provider and t.provider_reference = :id
        union all
        select 3, a.operation_id
            from attempt_provider p
            join attempt a on a.provider = p.provider and a.indexed_reference = :id
                and a.kind = 'payout')
    select p.payout_id, p.caller, p.seller_account, p.amount, p.fee, p.net_amount, p.currency,
        p.provider, p.state, p.booked, p.payout_destination_id, p.payout_batch_id,
        p.failure_reason, p.decline_code, p.traceparent, p.create_time, c.next_poll_time,
        c.poll_count, clock()
    from found f join payout p on p.payout_id = f.payout_id
        left join completed_payout_poll c on c.payout_id = p.payout_id
    where cast(:owner as text) is null or p.owner = :owner
    order by f.priority, f.payout_id limit 1
    """,
)
_LIST_TRANSITIONS = Query(
    PayoutTransitionRow,
    """
    select {columns} from payout_history where payout_id = :payout_id
    order by version desc limit :limit + 1
    """,
)
_LIST_TRANSFERS = Query(
    ExplainedTransferRow,
    """
    select {columns} from transfer where payout_id = :payout_id
    order by create_time desc, provider_reference limit :limit + 1
    """,
)
_LIST_REPORTS = Query(
    PayoutReportRow,
    """
    select {columns} from conflicting_report where payout_id = :payout_id
    order by number desc limit :limit + 1
    """,
)


def find_payout(connection: Connection, id_: str, owner: str | None) -> ExplainedPayoutRow | None:
    """The payout that has an id, among those of an owner (None: of all): its own id, or a
    provider's id of it or of one of its transfers, in this order.
    """
    return _FIND.one_or_none(connection, id=id_, owner=owner)


def list_transitions(
    connection: Connection, payout_id: str, limit: int
) -> list[PayoutTransitionRow]:
    """The versions of a payout, newest first."""
    return _LIST_TRANSITIONS.all(connection, payout_id=payout_id, limit=limit)


def list_transfers(
    connection: Connection, payout_id: str, limit: int
) -> list[ExplainedTransferRow]:
    """The transfers of a payout, newest first."""
    return _LIST_TRANSFERS.all(connection, payout_id=payout_id, limit=limit)


def list_reports(connection: Connection, payout_id: str, limit: int) -> list[PayoutReportRow]:
    """The conflicting reports of a payout, newest first."""
    return _LIST_REPORTS.all(connection, payout_id=payout_id, limit=limit)
