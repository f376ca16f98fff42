"""Transfers: money that payout providers report as paid, and what was returned of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_core.operations.kind import KindName
from tallystick_storage.database import ConstraintViolation, encode_rows
from tallystick_storage.sql import Connection, Query, text
from tallystick_storage.webhook_events import SubjectKey, find_subjects, find_subjects_query


@dataclass(slots=True)
class ReportedTransfer:
    """A transfer as the provider reports it now, in minor units; `returned_amount` None: nothing
    was returned.
    """

    provider: str
    provider_reference: str
    payout_id: str
    match: str
    source_id: str
    amount: int
    currency: str
    returned_amount: int | None
    returned_currency: str


class TransferRow(NamedTuple):
    """A stored transfer, and who has acknowledged it; "": nobody has. Amounts in minor units."""

    payout_id: str
    provider: str
    provider_reference: str
    match: str
    amount: int
    currency: str
    returned_amount: int | None
    returned_currency: str
    create_time: datetime
    return_time: datetime | None
    acknowledged_by: str
    acknowledge_reason: str
    acknowledge_time: datetime | None


_LOAD_TRANSFERS = Query(
    TransferRow,
    "select {columns} from transfer where payout_id = any (cast(:ids as text[])) order by "
    "payout_id, create_time, provider_reference",
)
_UPSERT_TRANSFERS = text("""
    insert into transfer (provider, provider_reference, payout_id, match, source_id, amount,
        currency,
        returned_amount, returned_currency, create_time,
        return_time)
    select provider, provider_reference, payout_id, match, source_id, amount, currency,
        returned_amount, returned_currency, t.now,
        case when returned_amount is not null then t.now end
    from json_to_recordset(cast(:transfers as json))
        as r (provider text, provider_reference text collate "C", payout_id text collate "C",
        match text, source_id text, amount bigint,
        currency text,
        returned_amount bigint, returned_currency text), (select clock() as now) t
    order by payout_id, provider_reference
    on conflict (provider, provider_reference) do update
        set returned_amount = excluded.returned_amount,
        returned_currency = excluded.returned_currency,
        return_time = excluded.return_time, acknowledged_by = '', acknowledge_reason = '',
            acknowledge_time = null
        where transfer.payout_id = excluded.payout_id and transfer.returned_amount is null
    returning payout_id
""")


def load_transfers(connection: Connection, payout_ids: list[str]) -> dict[str, list[TransferRow]]:
    """The transfers of payouts, oldest first, by payout id. Payouts without any are missing."""
    by_payout: dict[str, list[TransferRow]] = {}
    for row in _LOAD_TRANSFERS.all(connection, ids=payout_ids):
        by_payout.setdefault(row.payout_id, []).append(row)
    return by_payout


def upsert_transfers(connection: Connection, transfers: Sequence[ReportedTransfer]) -> None:
    """Stores new or returned transfers of locked payouts. Raises ConstraintViolation if a reference
    belongs to another payout.
    """
    stored = connection.execute(_UPSERT_TRANSFERS, {"transfers": encode_rows(transfers)})
    if stored.rowcount != len(transfers):
        raise ConstraintViolation(
            "23505", "transfer_pkey", "a provider's reference names transfers of two payouts"
        )


_FIND_REPORTED = find_subjects_query(KindName.PAYOUT, "transfer", "payout_id")


def find_reported(connection: Connection, keys: Collection[SubjectKey]) -> dict[SubjectKey, str]:
    """The payouts that webhook events are about."""
    return find_subjects(connection, _FIND_REPORTED, keys)
