"""A payout in hand: what a process knows of the work it holds the lease of."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from sqlalchemy import Row

from tallystick.payout.v1 import payout_pb2
from tallystick_core.payout import AT_REST, PayoutState, payout_demand
from tallystick_core.provider import FailureReason, PayoutDemand, PayoutFound, provider_key
from tallystick_core.recovery import Step
from tallystick_server.payout import encode
from tallystick_server.payout.standing import Standing, stands
from tallystick_server.payout.submit import Port
from tallystick_server.runtime.demand import InHand, stored_tries
from tallystick_server.runtime.telemetry import SpanContext, context_of
from tallystick_storage.payout import payouts as store

# What accept stores of a new payout, and what this process therefore knows without reading it back.
FIRST_TOKEN = 1
ATTEMPT = 1
"""A payout is demanded once, under one key: after FAILED the caller makes a new one."""

_PREPARED = frozenset({PayoutState.CREATED, PayoutState.AWAITING_APPROVAL, PayoutState.READY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Payout(InHand):
    """One payment to a seller's bank. Amounts in minor units; `message` is what was last told of it."""

    payout_id: str
    seller_account: str
    amount: int
    fee: int
    reserve: int
    currency: str
    payout_destination_id: str
    bank_account_token: str
    standing: Standing
    message: payout_pb2.Payout

    @property
    def subject(self) -> str:
        return f"payouts/{self.payout_id}"

    @property
    def state(self) -> PayoutState:
        return self.standing.state

    @property
    def net_amount(self) -> int:
        return self.amount - self.fee

    @property
    def to_settle(self) -> bool:
        return self.state in AT_REST and not self.standing.settled

    @property
    def phase(self) -> str:
        return self.state if self.waits else ""

    @property
    def waits(self) -> bool:
        return self.state in (PayoutState.SUBMITTED, PayoutState.IN_TRANSIT)

    def ending(self, now: float) -> FailureReason | None:
        return None

    def step(self, now: float, key_window: float, lease: float) -> Step:
        if self.state in _PREPARED:
            return Step.PREPARE
        if self.state in AT_REST:
            return Step.SETTLE
        sends = self.state is PayoutState.SUBMITTING and not self.looking and self.key_honoured(key_window, lease)
        return Step.SEND if sends else Step.LOOK_UP

    def demand(self) -> PayoutDemand:
        """What the provider is asked."""
        return PayoutDemand(self.provider_key, self.payout_id, self.net_amount, self.currency, self.bank_account_token)

    def ask(self, provider: Port, step: Step) -> Awaitable[PayoutFound]:
        return provider.send(self.demand()) if step is Step.SEND else provider.look_up(self.demand())

    def as_stored(self, row: Row[Any]) -> Payout:
        """The same payout as it stands in a row."""
        return replace(self, standing=stands(row), message=encode.payout(row))


def new_payout(new: store.NewPayout, row: Row[Any], bank_account_token: str, environment: str, deadline: float, context: SpanContext) -> Payout:
    """A payout that was accepted just now, leased to this process."""
    return Payout(
        demand_id=payout_demand(new.payout_id),
        caller=new.caller,
        number=ATTEMPT,
        provider=new.provider,
        provider_key=provider_key(environment, payout_demand(new.payout_id), ATTEMPT),
        lease_token=FIRST_TOKEN,
        lease_deadline=deadline,
        traceparent=new.traceparent,
        context=context,
        payout_id=new.payout_id,
        seller_account=new.seller_account,
        amount=new.amount,
        fee=new.fee,
        reserve=new.reserve,
        currency=new.currency,
        payout_destination_id=new.payout_destination_id,
        bank_account_token=bank_account_token,
        standing=Standing(),
        message=encode.new_payout(new, row.create_time),
    )


def stored_payouts(rows: Iterable[Row[Any]], tokens: Mapping[str, int], environment: str, deadline: float = inf) -> list[Payout]:
    """Payouts out of the database, claimed under `tokens` until `deadline` (the loop's time); without a token only to look at."""
    return [
        Payout(
            demand_id=payout_demand(row.payout_id),
            caller=row.caller,
            number=ATTEMPT,
            provider=row.provider,
            provider_key=row.provider_key or provider_key(environment, payout_demand(row.payout_id), ATTEMPT),
            lease_token=tokens.get(payout_demand(row.payout_id), 0),
            lease_deadline=deadline,
            traceparent=row.traceparent,
            context=context_of(row.traceparent),
            age=float(row.age or 0.0),
            maybe_sent=bool(row.maybe_sent),
            looking=bool(row.looking),
            tries=stored_tries(row.tries),
            payout_id=row.payout_id,
            seller_account=row.seller_account,
            amount=row.amount,
            fee=row.fee,
            reserve=row.reserve,
            currency=row.currency,
            payout_destination_id=row.payout_destination_id,
            bank_account_token=row.bank_account_token,
            standing=stands(row),
            message=encode.payout(row),
        )
        for row in rows
    ]
