"""The explanation of a payment: its facts as sentences, in the order of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import groupby

from tallystick_core.operations.dead_letter import DeadLetterState
from tallystick_core.operations.explanation import (
    AttemptFacts,
    Explanation,
    ExplanationEntry,
    ExplanationSource,
    NextStep,
    count,
    format_time,
    join_sentences,
    quote,
    sort_entries,
    sort_steps,
)
from tallystick_core.operations.explanation_attempts import attempt_entries, failed_try_entry
from tallystick_core.operations.explanation_sentences import (
    alert_entries,
    dead_letter_entries,
    report_entries,
    webhook_entry,
    webhook_steps,
)
from tallystick_core.payment.checkout import ChargeMode
from tallystick_core.payment.explanation_facts import (
    ChargeFacts,
    OrderFacts,
    OrderTransitionFacts,
    PaymentFacts,
    UnappliedFacts,
)
from tallystick_core.payment.explanation_steps import charge_steps, unapplied_steps
from tallystick_core.payment.state import (
    TERMINAL_STATUSES,
    OrderStatus,
    PaymentTransitionReason,
)
from tallystick_core.provider.outcome import FailureReason, PendingReason

_CHARGE = "charge"

PENDING_SENTENCES: Mapping[PendingReason, str] = {
    PendingReason.BUYER_ACTION: "The provider waits for the buyer.",
    PendingReason.PROVIDER_REVIEW: "The provider reviews the charge.",
    PendingReason.RISK_REVIEW: "The risk provider reviews the charge.",
}
"""Why an order is PENDING."""

FAILURE_SENTENCES: Mapping[FailureReason, str] = {
    FailureReason.PROVIDER_DECLINED: "The provider declined the charge.",
    FailureReason.INSUFFICIENT_FUNDS: "The buyer does not have enough money.",
    FailureReason.PAYMENT_METHOD_INVALID: "The payment method cannot be used: it is expired, "
    "blocked or unknown.",
    FailureReason.AUTHENTICATION_FAILED: "The buyer did not pass the authentication.",
    FailureReason.PAGE_EXPIRED: "The buyer did not pay on the hosted page before it expired.",
    FailureReason.EXPIRED: "It was not charged before the payment expired, or the buyer did not "
    "act in time.",
    FailureReason.BUYER_CANCELLED: "The buyer cancelled.",
    FailureReason.CALLER_CANCELLED: "The caller cancelled the payment.",
    FailureReason.RISK_AMOUNT_LIMIT: "The amount is above the configured limit of its currency.",
    FailureReason.RISK_VELOCITY: "The buyer has made too many orders in the configured window.",
    FailureReason.RISK_BLOCKED_ACCOUNT: "The buyer or the seller is on the list of blocked "
    "accounts.",
    FailureReason.RISK_BLOCKED_COUNTRY: "The buyer's country is on the list of blocked countries.",
    FailureReason.RISK_PROVIDER: "The risk provider declined it, or did not decide within its "
    "retry policy; nothing was sent.",
    FailureReason.PROVIDER_MISMATCH: "The provider charged another amount or currency than "
    "requested; that money is an unapplied charge.",
    FailureReason.PROVIDER_REJECTED: "The provider declined the request itself, such as its "
    "amount; nothing was charged.",
    FailureReason.PROVIDER_UNREACHABLE: "The provider could not be reached; certainly nothing was "
    "sent.",
    FailureReason.SIBLING_FAILED: "The payment is all or nothing, and another order was rejected.",
    FailureReason.CLOSED_BY_OPERATOR: "An operator closed it on the evidence that nothing was "
    "charged.",
}
"""Why an order is FAILED."""

_UNAPPLIED_CAUSES = {
    "MISMATCH": "The amount or currency differs from the request.",
    "LATE": "Its orders had FAILED before the provider reported it.",
    "DUPLICATE_CHARGE": "Another charge has already paid its orders.",
}

_TRANSITIONS: Mapping[PaymentTransitionReason, str] = {
    PaymentTransitionReason.CREATED: "{orders} {was} stored.",
    PaymentTransitionReason.RISK_PASSED: "The risk check of {orders} passed.",
    PaymentTransitionReason.RISK_REJECTED: "The risk check rejected {orders}.",
    PaymentTransitionReason.PROVIDER_OUTCOME: "{orders} became {status}, as the provider reported.",
    PaymentTransitionReason.FALLBACK: "{orders} {goes} to the fallback provider: certainly nothing "
    "was sent to the first one.",
    PaymentTransitionReason.GIVEN_UP: "{orders} became FAILED without a charge.",
    PaymentTransitionReason.CLOSED_BY_OPERATOR: "{orders} became FAILED: an operator closed the "
    "dead letter.",
    PaymentTransitionReason.BOOKED: "{orders} {was} booked: the seller's wallet was credited and "
    "the ledger posted.",
    PaymentTransitionReason.DELIVERY_CONFIRMED: "The caller confirmed the delivery of {orders}.",
}

_BEFORE_AN_ATTEMPT = frozenset(
    {
        PaymentTransitionReason.CREATED,
        PaymentTransitionReason.RISK_PASSED,
        PaymentTransitionReason.RISK_REJECTED,
    }
)
"""Of one moment, these come first, then the attempt, then the others."""
_MAX_NAMED_ORDERS = 3


def explain(facts: PaymentFacts, now: datetime) -> Explanation:
    """The explanation of a payment at `now`. It has at least one next step and one entry."""
    entries = [_request_entry(facts)]
    steps: list[NextStep] = []
    for charge in facts.charges:
        entries += _charge_entries(charge)
        steps += charge_steps(charge, now)
    for unapplied in facts.unapplied:
        entries += _unapplied_entries(unapplied)
        steps += unapplied_steps(unapplied)
    for webhook in facts.webhooks:
        entries.append(webhook_entry(webhook))
    for alert in facts.alerts:
        entries += alert_entries(alert)
    if facts.done_time is not None:
        title = f"The payment ended as {facts.payment_state}."
        entries.append(ExplanationEntry(facts.done_time, ExplanationSource.STATE, title))
    return Explanation(
        f"payments/{facts.checkout_id}",
        facts.payment_state,
        _summary(facts),
        sort_steps([*steps, *webhook_steps(facts.webhooks)]),
        sort_entries(entries),
    )


def describe_order(  # noqa: PLR0911 - one for each condition
    order: OrderFacts, charge: ChargeFacts
) -> str:
    """The condition of an order, as the end of a sentence: "1 order {waits for the buyer}"."""
    if order.status is OrderStatus.FAILED:
        reason = order.failure_reason or FailureReason.PROVIDER_DECLINED
        return f"FAILED with {reason}"
    if order.status is OrderStatus.SUCCESS and order.is_booked:
        return "PAID and booked"
    if any(item.state is DeadLetterState.OPEN for item in charge.dead_letters):
        return f"{order.status} and waits for an operator (dead letter)"
    match order.status:
        case OrderStatus.SUCCESS:
            return "charged and is being booked"
        case OrderStatus.PENDING if order.pending_reason is PendingReason.BUYER_ACTION:
            return f"PENDING and waits for the buyer at {charge.provider}"
        case OrderStatus.PENDING if order.pending_reason is PendingReason.RISK_REVIEW:
            return "PENDING and waits for the review of the risk provider"
        case OrderStatus.PENDING:
            return f"PENDING and waits for the review of {charge.provider}"
        case OrderStatus.NOT_STARTED:
            return "NOT_STARTED and waits for the risk check"
        case _:
            return f"EXECUTING: {charge.provider} has not reported an outcome"


def _summary(facts: PaymentFacts) -> str:
    conditions = Counter(
        describe_order(order, charge) for charge in facts.charges for order in charge.orders
    )
    shown_count = sum(conditions.values())
    parts = [
        f"{number} of {facts.order_count} orders {'is' if number == 1 else 'are'} {condition}"
        if facts.order_count > 1
        else f"Its order is {condition}"
        for condition, number in sorted(conditions.items())
    ]
    return join_sentences(
        f"The payment {facts.checkout_id} of {facts.caller} is {facts.payment_state}.",
        *(f"{part}." for part in parts),
        _describe_left_out(facts.order_count - shown_count)
        if shown_count < facts.order_count
        else "",
        f"The caller cancelled it: {quote(facts.cancel_reason)}." if facts.cancel_reason else "",
        *(FAILURE_SENTENCES[reason] for reason in _failure_reasons(facts)),
    )


def _describe_left_out(number: int) -> str:
    return f"{count(number, 'order')} {'is' if number == 1 else 'are'} left out."


def _failure_reasons(facts: PaymentFacts) -> list[FailureReason]:
    """The distinct reasons of the failed orders."""
    reasons = {
        order.failure_reason: None
        for charge in facts.charges
        for order in charge.orders
        if order.failure_reason is not None
    }
    return list(reasons)


def _request_entry(facts: PaymentFacts) -> ExplanationEntry:
    return ExplanationEntry(
        facts.create_time,
        ExplanationSource.REQUEST,
        f"{facts.caller} created the payment with {count(facts.order_count, 'order')}.",
        join_sentences(
            "All its orders are one charge."
            if facts.charge_mode is ChargeMode.COMBINED
            else "Each order is charged alone.",
            "The buyer pays on a hosted page of the provider." if facts.has_page else "",
            f"It expires at {format_time(facts.expire_time)}." if facts.expire_time else "",
        ),
        facts.checkout_id,
        facts.trace_id,
    )


def _charge_entries(charge: ChargeFacts) -> list[ExplanationEntry]:
    transitions = sorted(charge.transitions, key=_transition_key)
    grouped = [tuple(group) for _, group in groupby(transitions, key=_transition_key)]
    before, after = (
        [
            _transition_entry(group, charge)
            for group in grouped
            if (group[0].reason in _BEFORE_AN_ATTEMPT) is is_before
        ]
        for is_before in (True, False)
    )
    entries = before
    for attempt in charge.attempts:
        entries.append(_routing_entry(attempt, charge))
        entries += attempt_entries(attempt, _name(charge), _outcome_times(charge, attempt))
    entries += [failed_try_entry(item, _name(charge)) for item in charge.failed_tries]
    entries += after
    for dead_letter in charge.dead_letters:
        entries += dead_letter_entries(dead_letter)
    for report in charge.reports:
        entries += report_entries(report, _CHARGE)
    return entries


def _name(charge: ChargeFacts) -> str:
    return f"{_CHARGE} {charge.charge_id}"


def _transition_key(item: OrderTransitionFacts) -> tuple[datetime, str, str, str]:
    """Orders of one charge change together."""
    return (item.time, item.reason, item.to_status, item.failure_reason or "")


def _transition_entry(
    items: tuple[OrderTransitionFacts, ...], charge: ChargeFacts
) -> ExplanationEntry:
    first = items[0]
    names = [item.payment_order_id for item in items]
    orders = _name_orders(names)
    title = _TRANSITIONS[first.reason].format(
        orders=orders,
        status=first.to_status,
        was="was" if len(names) == 1 else "were",
        goes="goes" if len(names) == 1 else "go",
    )
    is_created = first.reason is PaymentTransitionReason.CREATED
    details = [
        PENDING_SENTENCES[first.pending_reason] if first.pending_reason else "",
        f"The buyer can act until {format_time(first.resolve_by_time)}."
        if first.resolve_by_time
        else "",
        FAILURE_SENTENCES[first.failure_reason] if first.failure_reason else "",
        f"The provider's code is {quote(first.decline_code)}." if first.decline_code else "",
        *(_describe_amounts(charge.orders, names) if is_created else ()),
    ]
    return ExplanationEntry(
        first.time,
        ExplanationSource.REQUEST if is_created else ExplanationSource.STATE,
        f"{title[:1].upper()}{title[1:]}",
        join_sentences(*details),
        first.provider_reference,
    )


def _describe_amounts(orders: Iterable[OrderFacts], names: list[str]) -> list[str]:
    return [
        f"{order.payment_order_id}: {order.amount} {order.currency} for the seller "
        f"{order.seller_account}, platform fee {order.platform_fee} {order.currency}."
        for order in orders
        if order.payment_order_id in names
    ]


def _name_orders(names: list[str]) -> str:
    if len(names) == 1:
        return f"the order {names[0]}"
    if len(names) <= _MAX_NAMED_ORDERS:
        return f"the orders {', '.join(names[:-1])} and {names[-1]}"
    return f"{len(names)} orders ({', '.join(names[:_MAX_NAMED_ORDERS])}, …)"


def _routing_entry(attempt: AttemptFacts, charge: ChargeFacts) -> ExplanationEntry:
    by_rule = f" by the routing rule {attempt.routing_rule}" if attempt.routing_rule else ""
    why = attempt.routing_reason or "it is the default provider"
    return ExplanationEntry(
        attempt.start_time,
        ExplanationSource.ROUTING,
        f"{attempt.provider} was chosen for the charge {charge.charge_id}{by_rule}.",
        join_sentences(
            f"Reason: {why.rstrip('.')}.",
            f"The fallback is {attempt.fallback_provider}." if attempt.fallback_provider else "",
        ),
    )


def _outcome_times(charge: ChargeFacts, attempt: AttemptFacts) -> list[datetime]:
    """When orders became final by an answer. One transaction stores both, the answer last."""
    return [
        item.time
        for item in charge.transitions
        if item.reason is PaymentTransitionReason.PROVIDER_OUTCOME
        and item.to_status in TERMINAL_STATUSES
        and item.time >= attempt.start_time
    ]


def _unapplied_entries(unapplied: UnappliedFacts) -> list[ExplanationEntry]:
    money = f"{unapplied.amount} {unapplied.currency}"
    entries = [
        ExplanationEntry(
            unapplied.create_time,
            ExplanationSource.PROVIDER,
            f"{unapplied.provider} took {money} that fits no order: an unapplied charge.",
            join_sentences(
                _UNAPPLIED_CAUSES.get(unapplied.cause, ""),
                "It is posted to the ledger."
                if unapplied.is_booked
                else "It is not posted to the ledger yet.",
            ),
            unapplied.provider_reference,
            unapplied.trace_id,
        )
    ]
    if unapplied.acknowledge_time is not None:
        entries.append(
            ExplanationEntry(
                unapplied.acknowledge_time,
                ExplanationSource.OPERATOR,
                f"{unapplied.acknowledged_by or 'An operator'} acknowledged the unapplied charge "
                f"of {money}.",
                f"Reason: {quote(unapplied.acknowledge_reason)}."
                if unapplied.acknowledge_reason
                else "",
                unapplied.unapplied_charge_id,
            )
        )
    return entries
