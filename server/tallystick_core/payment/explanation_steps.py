"""What happens next to a charge, an order and an unapplied charge, and who must act."""

from __future__ import annotations

from datetime import datetime

from tallystick_core.operations.explanation import (
    Actor,
    NextStep,
    describe_polls,
    quote,
)
from tallystick_core.operations.explanation_sentences import (
    operation_steps,
    report_steps,
)
from tallystick_core.payment.explanation_facts import (
    ChargeFacts,
    OrderFacts,
    PollFacts,
    UnappliedFacts,
)
from tallystick_core.payment.state import OrderStatus
from tallystick_core.provider.outcome import PendingReason

_CHARGE = "charge"

_FAILED_STEP = NextStep(
    Actor.NOBODY,
    "Nothing more happens: the order failed. To try again, the caller creates another payment with "
    "new ids.",
)


def charge_steps(charge: ChargeFacts, now: datetime) -> list[NextStep]:
    """What happens next to a charge."""
    name = f"charges/{charge.charge_id}"
    steps = list(report_steps(charge.reports, _CHARGE, name))
    statuses = {order.status for order in charge.orders if not _was_rejected_alone(order, charge)}
    if statuses == {OrderStatus.FAILED}:
        steps.append(_FAILED_STEP)
    elif statuses == {OrderStatus.SUCCESS} and all(order.is_booked for order in charge.orders):
        for order in charge.orders:
            steps += _paid_steps(order, now)
    else:
        if OrderStatus.PENDING in statuses:
            steps += _pending_steps(charge)
        steps += operation_steps(charge.operation, charge.dead_letters, _CHARGE, name, now)
    return steps + [_poll_step(poll, name) for poll in charge.polls]


def _was_rejected_alone(order: OrderFacts, charge: ChargeFacts) -> bool:
    """Whether the risk check rejected the order of a combined charge whose other orders were not:
    it belongs to no charge.
    """
    return order.status is OrderStatus.FAILED and any(
        other.status is not OrderStatus.FAILED for other in charge.orders
    )


def _pending_steps(charge: ChargeFacts) -> list[NextStep]:
    """What the provider waits for. The platform's own step follows."""
    name, order = f"charges/{charge.charge_id}", charge.orders[0]
    order = next((item for item in charge.orders if item.status is OrderStatus.PENDING), order)
    if order.pending_reason is not PendingReason.BUYER_ACTION:
        reviewer = (
            "The risk provider"
            if order.pending_reason is PendingReason.RISK_REVIEW
            else charge.provider
        )
        action = (
            f"{reviewer} must decide its review of the charge, which has no deadline. The order "
            "never fails by itself."
        )
        return [NextStep(Actor.PROVIDER, action, name)]
    buyer_step = NextStep(
        Actor.BUYER,
        f"The buyer must complete the payment at {charge.provider}.",
        name,
        deadline=order.resolve_by_time,
    )
    if order.resolve_by_time is None:
        return [buyer_step]
    action = f"If the buyer has not acted by then, the platform asks {charge.provider} to cancel."
    return [buyer_step, NextStep(Actor.PLATFORM, action, name, order.resolve_by_time)]


def _paid_steps(order: OrderFacts, now: datetime) -> list[NextStep]:
    """What happens next to an order that is paid and booked."""
    name = f"paymentOrders/{order.payment_order_id}"
    if order.release_time is None:
        if order.delivery_confirmed_time is not None:
            action = "Nothing more happens: the order is paid, booked and delivered."
            return [NextStep(Actor.NOBODY, action)]
        action = (
            "Nothing more happens to the payment: it is paid and booked. Money that is still "
            "pending in the seller's wallet becomes available at the end of its release delay, or "
            "when the caller confirms the delivery."
        )
        return [NextStep(Actor.NOBODY, action)]
    release = NextStep(
        Actor.PLATFORM,
        "The platform asks WalletService to make the seller's money available, because the "
        "delivery is confirmed.",
        name,
        max(order.release_time, now),
    )
    if not order.release_rejection:
        return [release]
    action = (
        "An operator must find out why WalletService rejects the release after the delivery: "
        f"{quote(order.release_rejection)}."
    )
    return [NextStep(Actor.OPERATOR, action, name), release]


def _poll_step(poll: PollFacts, resource_name: str) -> NextStep:
    action = (
        f"The platform asks {poll.provider} whether a failed attempt was charged after all; "
        f"{describe_polls(poll.poll_count)}. Such money becomes an unapplied charge."
    )
    return NextStep(Actor.PLATFORM, action, resource_name, poll.next_poll_time)


def unapplied_steps(unapplied: UnappliedFacts) -> list[NextStep]:
    """What happens next to an unapplied charge; nothing once it is acknowledged."""
    name = f"unappliedCharges/{unapplied.unapplied_charge_id}"
    if unapplied.acknowledge_time is not None:
        return []
    money = f"{unapplied.amount} {unapplied.currency}"
    decide = NextStep(
        Actor.OPERATOR,
        f"An operator must decide what happens to {money} that {unapplied.provider} took as "
        f"{unapplied.provider_reference}, such as refund it there, and acknowledge the unapplied "
        "charge.",
        name,
    )
    if unapplied.is_booked:
        return [decide]
    post = f"The platform posts the unapplied charge of {money} to the ledger."
    return [decide, NextStep(Actor.PLATFORM, post, name)]
