"""The facts of a payment that its explanation is made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tallystick_core.operations.explanation import (
    AlertFacts,
    AttemptFacts,
    DeadLetterFacts,
    FailedTryFacts,
    OperationFacts,
    ReportFacts,
    WebhookFacts,
)
from tallystick_core.payment.checkout import ChargeMode
from tallystick_core.payment.state import OrderStatus, PaymentTransitionReason
from tallystick_core.provider.outcome import FailureReason, PendingReason


@dataclass(frozen=True, slots=True)
class OrderFacts:
    """An order as it is now. Amounts are decimal text in major units. `release_rejection`: why the
    wallet rejects the release after its delivery, "": it did not; `release_time`: when the release
    is tried next, None: no release is pending.
    """

    payment_order_id: str
    charge_id: str
    seller_account: str
    amount: str
    currency: str
    platform_fee: str
    status: OrderStatus
    is_booked: bool = False
    pending_reason: PendingReason | None = None
    resolve_by_time: datetime | None = None
    failure_reason: FailureReason | None = None
    decline_code: str = ""
    delivery_confirmed_time: datetime | None = None
    release_time: datetime | None = None
    release_rejection: str = ""


@dataclass(frozen=True, slots=True)
class OrderTransitionFacts:
    """A version of an order in its history."""

    payment_order_id: str
    to_status: OrderStatus
    reason: PaymentTransitionReason
    time: datetime
    pending_reason: PendingReason | None = None
    resolve_by_time: datetime | None = None
    failure_reason: FailureReason | None = None
    decline_code: str = ""
    provider_reference: str = ""


@dataclass(frozen=True, slots=True)
class PollFacts:
    """The polls of a failed or replaced attempt, in case the provider charged after all."""

    provider: str
    next_poll_time: datetime
    poll_count: int


@dataclass(frozen=True, slots=True)
class ChargeFacts:
    """A charge with its orders, which change state together. It has no attempts if the risk check
    rejected all its orders. `operation` None: it is complete.
    """

    charge_id: str
    orders: tuple[OrderFacts, ...]
    transitions: tuple[OrderTransitionFacts, ...] = ()
    attempts: tuple[AttemptFacts, ...] = ()
    operation: OperationFacts | None = None
    dead_letters: tuple[DeadLetterFacts, ...] = ()
    reports: tuple[ReportFacts, ...] = ()
    polls: tuple[PollFacts, ...] = ()
    failed_tries: tuple[FailedTryFacts, ...] = ()

    @property
    def provider(self) -> str:
        """The provider of the last attempt."""
        return self.attempts[-1].provider if self.attempts else "the provider"


@dataclass(frozen=True, slots=True)
class UnappliedFacts:
    """Money that a provider took and that fits no order. `acknowledge_time` None: it is open."""

    unapplied_charge_id: str
    charge_id: str
    provider: str
    provider_reference: str
    amount: str
    currency: str
    cause: str
    is_booked: bool
    create_time: datetime
    trace_id: str = ""
    acknowledged_by: str = ""
    acknowledge_reason: str = ""
    acknowledge_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class PaymentFacts:
    """A payment and everything that PaymentService has stored about it. `expire_time` None: never;
    `cancel_reason` "": it was not cancelled. `order_count` counts all orders, also those that are
    left out of `charges`.
    """

    checkout_id: str
    caller: str
    payment_state: str
    charge_mode: ChargeMode
    order_count: int
    create_time: datetime
    charges: tuple[ChargeFacts, ...]
    has_page: bool = False
    expire_time: datetime | None = None
    cancel_reason: str = ""
    done_time: datetime | None = None
    trace_id: str = ""
    unapplied: tuple[UnappliedFacts, ...] = ()
    webhooks: tuple[WebhookFacts, ...] = ()
    alerts: tuple[AlertFacts, ...] = ()
