"""A payout leased by this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf

from tallystick.payout.v1 import payout_pb2
from tallystick_core.operations.idempotency_key import format_provider_key
from tallystick_core.operations.kind import KindName
from tallystick_core.payout.snapshot import PayoutSnapshot
from tallystick_core.payout.state import PayoutState
from tallystick_server.observability.tracing import SpanContext, parse_traceparent
from tallystick_server.operations.operation import (
    FIRST_LEASE_TOKEN,
    NO_LEASE,
    LeasedOperation,
    parse_tries,
)
from tallystick_server.payout import convert
from tallystick_server.payout.snapshot import snapshot_of
from tallystick_storage.payout import payouts as store

ATTEMPT_NUMBER = 1
"""A payout has one attempt, under one idempotency key. After FAILED the caller creates a new
payout.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PayoutOperation(LeasedOperation):
    """A payout that this process has leased. Amounts in minor units; `message` is the payout in its
    latest event.
    """

    kind: KindName = KindName.PAYOUT
    seller_account: str
    amount: int
    fee: int
    reserve: int
    currency: str
    payout_destination_id: str
    bank_account_token: str
    snapshot: PayoutSnapshot
    message: payout_pb2.Payout

    @property
    def payout_id(self) -> str:
        return self.operation_id

    @property
    def state(self) -> PayoutState:
        return self.snapshot.state

    @property
    def net_amount(self) -> int:
        return self.amount - self.fee

    def updated_from(self, row: store.PayoutRow) -> PayoutOperation:
        """The same payout with the current values of a row."""
        return replace(self, snapshot=snapshot_of(row), message=convert.payout(row))


def build_operation(
    new: store.NewPayoutRow,
    row: store.InsertedPayoutRow,
    bank_account_token: str,
    environment: str,
    lease_deadline: float,
    context: SpanContext,
) -> PayoutOperation:
    """A payout that was just created, leased to this process."""
    return PayoutOperation(
        operation_id=new.payout_id,
        caller=new.caller,
        attempt_number=ATTEMPT_NUMBER,
        provider=new.provider,
        provider_key=format_provider_key(
            environment, KindName.PAYOUT, new.payout_id, ATTEMPT_NUMBER
        ),
        lease_token=FIRST_LEASE_TOKEN,
        lease_deadline=lease_deadline,
        traceparent=new.traceparent,
        context=context,
        seller_account=new.seller_account,
        amount=new.amount,
        fee=new.fee,
        reserve=new.reserve,
        currency=new.currency,
        payout_destination_id=new.payout_destination_id,
        bank_account_token=bank_account_token,
        snapshot=PayoutSnapshot(),
        message=convert.new_payout(new, row.create_time),
    )


def operations_from_rows(
    rows: Iterable[store.PayoutOperationRow],
    tokens: Mapping[str, int],
    environment: str,
    lease_deadline: float = inf,
) -> list[PayoutOperation]:
    """Converts stored rows to payouts, claimed under `tokens` until `lease_deadline` (loop time).

    A payout without a token is only for reading.
    """
    return [
        PayoutOperation(
            operation_id=row.payout_id,
            caller=row.caller,
            attempt_number=ATTEMPT_NUMBER,
            provider=row.provider,
            provider_key=row.provider_key
            or format_provider_key(environment, KindName.PAYOUT, row.payout_id, ATTEMPT_NUMBER),
            provider_reference=row.attempt_reference or "",
            lease_token=tokens.get(row.payout_id, NO_LEASE),
            lease_deadline=lease_deadline,
            traceparent=row.traceparent,
            context=parse_traceparent(row.traceparent),
            age_seconds=float(row.age or 0.0),
            maybe_sent=bool(row.maybe_sent),
            lookup_only=bool(row.lookup_only),
            tries=parse_tries(row.retry_counts),
            seconds_since_sent=None if row.since_sent is None else float(row.since_sent),
            not_found_count=row.not_found_count,
            seller_account=row.seller_account,
            amount=row.amount,
            fee=row.fee,
            reserve=row.reserve,
            currency=row.currency,
            payout_destination_id=row.payout_destination_id,
            bank_account_token=row.bank_account_token,
            snapshot=snapshot_of(row),
            message=convert.payout(row),
        )
        for row in rows
    ]
