"""The explanation of a payment: every way in which it can end or wait has its story."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.operations.explanation import (
    Actor,
    AlertFacts,
    AttemptFacts,
    DeadLetterFacts,
    Explanation,
    NextStep,
    OperationFacts,
    ReportFacts,
    WebhookFacts,
)
from tallystick_core.operations.explanation_attempts import RETRY_SENTENCES
from tallystick_core.operations.next_action import NextAction
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_core.payment.charge_update import UnappliedCause
from tallystick_core.payment.checkout import ChargeMode
from tallystick_core.payment.explanation import (
    FAILURE_SENTENCES,
    PENDING_SENTENCES,
    explain,
)
from tallystick_core.payment.explanation_facts import (
    ChargeFacts,
    OrderFacts,
    OrderTransitionFacts,
    PaymentFacts,
    PollFacts,
    UnappliedFacts,
)
from tallystick_core.payment.state import TRANSITIONS, OrderStatus, PaymentTransitionReason
from tallystick_core.provider.outcome import FailureReason, PendingReason, RetryReason

_NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
_LATER = _NOW + timedelta(minutes=5)
_START = _NOW - timedelta(hours=1)
_ORDER = OrderFacts("po-1", "o-po-1", "seller-1", "10.00", "EUR", "0.50", OrderStatus.EXECUTING)
_ATTEMPT = AttemptFacts(1, "stripe", "dev-o-po-1-1", "", _START)
_DEAD_LETTER = DeadLetterFacts(
    "charges-o-po-1-1", DeadLetterState.OPEN, DeadLetterCause.REJECTED, "no such token", 3, _START
)
_UNAPPLIED = UnappliedFacts(
    "u-1", "o-po-1", "stripe", "ch_9", "7.00", "EUR", "LATE", is_booked=True, create_time=_START
)


def _operation(next_action: NextAction, **values: object) -> OperationFacts:
    return replace(OperationFacts(next_action, "stripe", _LATER), **values)  # type: ignore[arg-type]


def _charge(order: OrderFacts, **values: object) -> ChargeFacts:
    charge = ChargeFacts("o-po-1", (order,), attempts=(_ATTEMPT,))
    return replace(charge, **values)  # type: ignore[arg-type]


def _payment(*charges: ChargeFacts, **values: object) -> PaymentFacts:
    count = sum(len(charge.orders) for charge in charges)
    payment = PaymentFacts("c-1", "shop", "OPEN", ChargeMode.PER_ORDER, count, _START, charges)
    return replace(payment, **values)  # type: ignore[arg-type]


class Story(NamedTuple):
    """A condition of a charge, and its next steps: actor, a part of the action, time, deadline."""

    charge: ChargeFacts
    steps: Sequence[tuple[Actor, str, datetime | None, datetime | None]]


def _order(status: OrderStatus, **values: object) -> OrderFacts:
    return replace(_ORDER, status=status, **values)  # type: ignore[arg-type]


_FAILED = _order(OrderStatus.FAILED, failure_reason=FailureReason.INSUFFICIENT_FUNDS)
_BUYER = _order(
    OrderStatus.PENDING,
    pending_reason=PendingReason.BUYER_ACTION,
    resolve_by_time=_LATER + timedelta(hours=1),
)
_REVIEW = _order(OrderStatus.PENDING, pending_reason=PendingReason.PROVIDER_REVIEW)
_RISK_REVIEW = _order(OrderStatus.PENDING, pending_reason=PendingReason.RISK_REVIEW)
_SUCCESS = _order(OrderStatus.SUCCESS)
_BOOKED = _order(OrderStatus.SUCCESS, is_booked=True)

STORIES: dict[str, Story] = {
    "waits for the risk provider": Story(
        _charge(_order(OrderStatus.NOT_STARTED), operation=_operation(NextAction.RISK)),
        [(Actor.PLATFORM, "asks the risk provider whether", _LATER, None)],
    ),
    "is sent for the first time": Story(
        _charge(_ORDER, operation=_operation(NextAction.SEND, lease_until=_LATER)),
        [(Actor.PLATFORM, "sends the charge to stripe. A process is working on it", _NOW, None)],
    ),
    "was certainly not sent, and is sent later": Story(
        _charge(
            _ORDER,
            operation=_operation(
                NextAction.SEND,
                retry_reason=RetryReason.NOT_SENT,
                detail="connection reset",
                try_count=2,
                max_tries=5,
            ),
        ),
        [
            (
                Actor.PLATFORM,
                'certainly nothing was sent. The last answer was: "connection reset"',
                _LATER,
                None,
            )
        ],
    ),
    "lost its answer, and is sent again under the same key": Story(
        _charge(
            _ORDER,
            operation=_operation(
                NextAction.SEND, maybe_sent=True, retry_reason=RetryReason.NO_ANSWER
            ),
        ),
        [(Actor.PLATFORM, "again, under the same idempotency key", _LATER, None)],
    ),
    "lost its answer, and is looked up": Story(
        _charge(
            _ORDER,
            operation=_operation(
                NextAction.LOOK_UP, maybe_sent=True, retry_reason=RetryReason.OUTCOME_UNKNOWN
            ),
        ),
        [(Actor.PLATFORM, "asks stripe for the outcome", _LATER, None)],
    ),
    "waits for an open circuit": Story(
        _charge(
            _ORDER, operation=_operation(NextAction.SEND, retry_reason=RetryReason.CIRCUIT_OPEN)
        ),
        [(Actor.PLATFORM, "no calls are sent to the provider", _LATER, None)],
    ),
    "waits for credentials": Story(
        _charge(
            _ORDER, operation=_operation(NextAction.SEND, retry_reason=RetryReason.UNAUTHORIZED)
        ),
        [
            (Actor.OPERATOR, "correct the credentials of stripe", None, None),
            (Actor.PLATFORM, "sends the charge", _LATER, None),
        ],
    ),
    "is cancelled or expired, and may have been sent": Story(
        _charge(_ORDER, operation=_operation(NextAction.CANCEL, maybe_sent=True)),
        [(Actor.PLATFORM, "asks stripe to cancel the charge", _LATER, None)],
    ),
    "is cancelled or expired, and was never sent": Story(
        _charge(_ORDER, operation=_operation(NextAction.GIVE_UP)),
        [(Actor.PLATFORM, "it was certainly not sent", _LATER, None)],
    ),
    "has an outcome that is not applied": Story(
        _charge(
            _ORDER,
            operation=_operation(
                NextAction.APPLY_RECORDED, retry_reason=RetryReason.APPLYING_FAILED
            ),
        ),
        [(Actor.PLATFORM, "applies the stored outcome", _LATER, None)],
    ),
    "is a dead letter": Story(
        _charge(
            _ORDER,
            operation=_operation(NextAction.SEND, next_try_time=None),
            dead_letters=(_DEAD_LETTER,),
        ),
        [(Actor.OPERATOR, "retry or close the dead letter charges-o-po-1-1", None, None)],
    ),
    "is a dead letter that expires": Story(
        _charge(
            _ORDER,
            operation=_operation(NextAction.SEND, next_try_time=None, expire_time=_LATER),
            dead_letters=(_DEAD_LETTER,),
        ),
        [
            (Actor.OPERATOR, "retry or close the dead letter", None, None),
            (Actor.PLATFORM, "expires", _LATER, None),
        ],
    ),
    "waits for the buyer": Story(
        _charge(_BUYER, operation=_operation(NextAction.LOOK_UP)),
        [
            (Actor.BUYER, "must complete the payment", None, _BUYER.resolve_by_time),
            (Actor.PLATFORM, "asks stripe for the outcome", _LATER, None),
            (Actor.PLATFORM, "has not acted by then", _BUYER.resolve_by_time, None),
        ],
    ),
    "waits for a review": Story(
        _charge(_REVIEW, operation=_operation(NextAction.LOOK_UP)),
        [
            (Actor.PROVIDER, "must decide its review", None, None),
            (Actor.PLATFORM, "asks stripe for the outcome", _LATER, None),
        ],
    ),
    "waits for a review by the risk provider": Story(
        _charge(_RISK_REVIEW, operation=_operation(NextAction.LOOK_UP)),
        [
            (Actor.PROVIDER, "The risk provider must decide its review", None, None),
            (Actor.PLATFORM, "asks stripe for the outcome", _LATER, None),
        ],
    ),
    "is charged and is being booked": Story(
        _charge(_SUCCESS, operation=_operation(NextAction.BOOK)),
        [(Actor.PLATFORM, "updates the seller's wallet and posts to the ledger", _LATER, None)],
    ),
    "is charged, and wallet or ledger do not answer": Story(
        _charge(
            _SUCCESS,
            operation=_operation(NextAction.BOOK, retry_reason=RetryReason.BOOKING_UNAVAILABLE),
        ),
        [(Actor.PLATFORM, "WalletService or LedgerService did not answer", _LATER, None)],
    ),
    "is charged, and the services reject each other": Story(
        _charge(
            _SUCCESS,
            operation=_operation(NextAction.BOOK, retry_reason=RetryReason.CALLER_REJECTED),
        ),
        [
            (Actor.OPERATOR, "correct the configuration", None, None),
            (Actor.PLATFORM, "updates the seller's wallet", _LATER, None),
        ],
    ),
    "is charged, and its booking is a dead letter": Story(
        _charge(
            _SUCCESS,
            operation=_operation(NextAction.BOOK, next_try_time=None),
            dead_letters=(replace(_DEAD_LETTER, cause=DeadLetterCause.BOOKING_REJECTED),),
        ),
        [(Actor.OPERATOR, "rejected the booking", None, None)],
    ),
    "is paid and booked": Story(
        _charge(_BOOKED), [(Actor.NOBODY, "it is paid and booked", None, None)]
    ),
    "is paid, booked and delivered": Story(
        _charge(replace(_BOOKED, delivery_confirmed_time=_NOW)),
        [(Actor.NOBODY, "paid, booked and delivered", None, None)],
    ),
    "is delivered, and the release is pending": Story(
        _charge(replace(_BOOKED, delivery_confirmed_time=_NOW, release_time=_LATER)),
        [(Actor.PLATFORM, "make the seller's money available", _LATER, None)],
    ),
    "is delivered, and the wallet rejects the release": Story(
        _charge(
            replace(
                _BOOKED,
                delivery_confirmed_time=_NOW,
                release_time=_LATER,
                release_rejection="no credit",
            )
        ),
        [
            (Actor.OPERATOR, 'rejects the release after the delivery: "no credit"', None, None),
            (Actor.PLATFORM, "make the seller's money available", _LATER, None),
        ],
    ),
    "failed": Story(
        _charge(_FAILED), [(Actor.NOBODY, "creates another payment with new ids", None, None)]
    ),
    "failed although it may have been sent": Story(
        _charge(_FAILED, polls=(PollFacts("stripe", _LATER, 1),)),
        [(Actor.PLATFORM, "charged after all; it has asked 1 time so far", _LATER, None)],
    ),
    "continues at the fallback while the first provider is polled": Story(
        _charge(_BOOKED, polls=(PollFacts("first", _LATER, 0),), attempts=(_ATTEMPT, _ATTEMPT)),
        [(Actor.PLATFORM, "asks first whether a failed attempt was charged", _LATER, None)],
    ),
    "has a conflicting report": Story(
        _charge(_BOOKED, reports=(ReportFacts(2, "Succeeded ch_1", _START, "", "", None),)),
        [(Actor.OPERATOR, "clarify the conflicting report 2", None, None)],
    ),
    "has no operation although it is not complete": Story(
        _charge(_ORDER), [(Actor.OPERATOR, "tallystick verify", None, None)]
    ),
}


_NOT_OF_A_CHARGE = {NextAction.PLACE_HOLD, NextAction.WAIT}
"""A charge holds no money, and one that waits for nothing is complete."""


def test_every_status_and_every_action_has_a_story() -> None:
    """A status of the state table, a pending reason or an action of the worker that is added needs
    a story of its own.
    """
    orders = [order for story in STORIES.values() for order in story.charge.orders]
    assert {order.status for order in orders} == set(OrderStatus)
    assert {status for status, _ in TRANSITIONS} <= {order.status for order in orders}
    assert {order.pending_reason for order in orders} == {None, *PendingReason}
    ended = {(order.status, order.is_booked) for order in orders}
    assert {(OrderStatus.SUCCESS, False), (OrderStatus.SUCCESS, True)} <= ended
    operations = [story.charge.operation for story in STORIES.values()]
    actions = {operation.next_action for operation in operations if operation is not None}
    assert actions == set(NextAction) - _NOT_OF_A_CHARGE


@pytest.mark.parametrize("reason", PaymentTransitionReason)
def test_every_transition_is_a_sentence(reason: PaymentTransitionReason) -> None:
    """Also of several orders at once, and each reason has another sentence."""
    for names, orders in (
        (("po-1",), "the order po-1"),
        (("po-1", "po-2"), "the orders po-1 and po-2"),
    ):
        transitions = tuple(
            OrderTransitionFacts(name, OrderStatus.SUCCESS, reason, _START) for name in names
        )
        explanation = explain(_payment(_charge(_BOOKED, transitions=transitions)), _NOW)
        _check_texts(explanation)
        titles = [entry.title for entry in explanation.entries]
        assert len([title for title in titles if orders in title.lower()]) == 1


@pytest.mark.parametrize("cause", UnappliedCause)
def test_every_unapplied_charge_names_why_it_fits_no_order(cause: UnappliedCause) -> None:
    """In a sentence of its own."""
    unapplied = replace(_UNAPPLIED, cause=cause)
    explanation = explain(_payment(_charge(_FAILED), unapplied=(unapplied,)), _NOW)
    (entry,) = [entry for entry in explanation.entries if "fits no order" in entry.title]
    assert entry.detail != "It is posted to the ledger."


def _check_texts(explanation: Explanation) -> None:
    """Each text is a sentence without a hole, and there is always a next step and an entry."""
    assert explanation.next_steps
    assert explanation.entries
    texts = [explanation.summary, *(step.action for step in explanation.next_steps)]
    texts += [entry.title for entry in explanation.entries]
    texts += [entry.detail for entry in explanation.entries if entry.detail]
    for sentence in texts:
        assert re.fullmatch(r"\S.*[.\"]", sentence), sentence
        assert not re.search(r"\bNone\b|[{}]|  |\.\.(?!\.)", sentence), sentence
    times = [entry.time for entry in explanation.entries]
    assert times == sorted(times)


@pytest.mark.parametrize("name", STORIES)
def test_every_wait_and_end_names_the_next_step_its_time_and_its_actor(name: str) -> None:
    """For each condition of a charge: who acts next, what they do, when, and until when."""
    charge, expected = STORIES[name]
    explanation = explain(_payment(charge), _NOW)
    _check_texts(explanation)
    found = [(step.actor, step.time, step.deadline) for step in explanation.next_steps]
    assert found == [(actor, time, deadline) for actor, _, time, deadline in expected]
    for step, (_, part, _, _) in zip(explanation.next_steps, expected, strict=True):
        assert part in step.action


def _conditions() -> list[ChargeFacts]:
    """Every status with every condition of its operation, also those that should not occur."""
    operations = [
        None,
        *(
            _operation(action, retry_reason=reason, lease_until=lease_until)
            for action, reason, lease_until in product(
                NextAction, (None, *RetryReason), (None, _LATER)
            )
        ),
    ]
    orders = [
        *(_order(status) for status in (OrderStatus.NOT_STARTED, OrderStatus.EXECUTING)),
        *(_order(OrderStatus.PENDING, pending_reason=reason) for reason in PendingReason),
        *(_order(OrderStatus.FAILED, failure_reason=reason) for reason in FailureReason),
        _BUYER,
        _SUCCESS,
        _BOOKED,
    ]
    ended = [
        replace(_DEAD_LETTER, cause=cause, state=state, end_time=_NOW)
        for cause, state in product(DeadLetterCause, DeadLetterState)
    ]
    return [
        *(_charge(order, operation=operation) for order, operation in product(orders, operations)),
        *(
            _charge(order, operation=_operation(NextAction.SEND), dead_letters=(dead_letter,))
            for order, dead_letter in product(orders, ended)
        ),
    ]


def test_the_next_step_is_total() -> None:
    """Every status with every next action, retry reason and dead letter has a next step."""
    for charge in _conditions():
        _check_texts(explain(_payment(charge), _NOW))


@pytest.mark.parametrize(
    ("sentences", "values"),
    [
        (FAILURE_SENTENCES, FailureReason),
        (PENDING_SENTENCES, PendingReason),
        (RETRY_SENTENCES, RetryReason),
    ],
    ids=["failures", "pending", "retries"],
)
def test_every_reason_has_a_sentence_of_its_own(
    sentences: dict[str, str], values: type[FailureReason]
) -> None:
    """A reason without a sentence, or with that of another reason, would explain nothing."""
    assert set(sentences) == set(values)
    assert len(set(sentences.values())) == len(sentences)


_TIMES = st.integers(0, 10_000).map(lambda seconds: _START + timedelta(seconds=seconds))
_TRANSITIONS = st.lists(
    st.builds(
        OrderTransitionFacts,
        payment_order_id=st.sampled_from(["po-1", "po-2", "po-3", "po-4", "po-5"]),
        to_status=st.sampled_from(OrderStatus),
        reason=st.sampled_from(PaymentTransitionReason),
        time=_TIMES,
        pending_reason=st.none() | st.sampled_from(PendingReason),
        resolve_by_time=st.none() | _TIMES,
        failure_reason=st.none() | st.sampled_from(FailureReason),
        decline_code=st.sampled_from(["", "do_not_honor"]),
    ),
    max_size=8,
)
_ATTEMPTS = st.lists(
    st.builds(
        AttemptFacts,
        number=st.integers(1, 2),
        provider=st.sampled_from(["stripe", "sandbox"]),
        provider_key=st.just("dev-o-po-1-1"),
        outcome=st.sampled_from(["", "SUCCEEDED", "DECLINED", "PENDING", "NOT_SENT", "UNKNOWN"]),
        start_time=_TIMES,
        end_time=st.none() | _TIMES,
        failure_reason=st.sampled_from(["", "INSUFFICIENT_FUNDS"]),
        provider_fee=st.sampled_from(["", "0.30 EUR"]),
        routing_rule=st.sampled_from(["", "german-cards"]),
        routing_reason=st.sampled_from(["", "currency is EUR"]),
        fallback_provider=st.sampled_from(["", "sandbox"]),
    ),
    max_size=2,
)


@given(_TRANSITIONS, _ATTEMPTS, st.sampled_from(["", "LATE", "MISMATCH", "UNHEARD"]))
def test_any_history_becomes_sentences_in_the_order_of_time(
    transitions: list[OrderTransitionFacts], attempts: list[AttemptFacts], cause: str
) -> None:
    """Whatever is stored, every entry is a sentence, no transition is lost, and time increases."""
    charge = _charge(_BOOKED, transitions=tuple(transitions), attempts=tuple(attempts))
    unapplied = replace(
        _UNAPPLIED,
        cause=cause,
        acknowledge_time=_NOW if cause else None,
        acknowledged_by="ada",
        acknowledge_reason="refunded",
    )
    webhook = WebhookFacts(
        "w-1",
        "stripe",
        "evt_1",
        "charge.failed",
        WebhookEventState.RECEIVED,
        _START,
        None,
        "ch_1",
        "",
    )
    alert = AlertFacts("a-1", "ORDER_STUCK", "paymentOrders/po-1", "EXECUTING", _START, _NOW)
    explanation = explain(
        _payment(charge, unapplied=(unapplied,), webhooks=(webhook,), alerts=(alert,)), _NOW
    )
    _check_texts(explanation)
    moments = {(item.time, item.reason) for item in transitions}
    assert len(explanation.entries) >= len(moments) + 2 * len(attempts) + 4


@pytest.mark.parametrize(
    ("retry_reason", "maybe_sent", "expected"),
    [
        (RetryReason.NOT_SENT, False, "it fails, because certainly nothing was sent."),
        (RetryReason.NO_ANSWER, True, "the platform asks for the outcome before"),
        (RetryReason.NOT_FOUND, True, "it is sent again and looked up alternately"),
        (RetryReason.OUTCOME_UNKNOWN, True, "it becomes a dead letter, and an operator decides."),
    ],
)
def test_a_wait_names_the_tries_and_what_follows_the_last(
    retry_reason: RetryReason, maybe_sent: bool, expected: str
) -> None:
    """The limit is that of the retry policy; without a limit that is what it says."""
    operation = _operation(
        NextAction.SEND, retry_reason=retry_reason, maybe_sent=maybe_sent, try_count=2, max_tries=5
    )
    (step,) = explain(_payment(_charge(_ORDER, operation=operation)), _NOW).next_steps
    assert f"It was tried 2 of 5 times for this reason; afterwards {expected}" in step.action
    operation = replace(operation, max_tries=None)
    (step,) = explain(_payment(_charge(_ORDER, operation=operation)), _NOW).next_steps
    assert "It was tried 2 times for this reason, without a limit." in step.action


def test_people_are_named_before_the_platform_and_a_finished_order_hides_no_wait() -> None:
    """With several orders the steps of people come first, and that one order is done says nothing
    about the payment.
    """
    charges = (
        _charge(_BOOKED),
        _charge(
            replace(_REVIEW, payment_order_id="po-2"), operation=_operation(NextAction.LOOK_UP)
        ),
        _charge(_BUYER, operation=_operation(NextAction.LOOK_UP)),
    )
    steps = explain(_payment(*charges), _NOW).next_steps
    assert [step.actor for step in steps[:2]] == [Actor.BUYER, Actor.PROVIDER]
    assert all(step.actor is not Actor.NOBODY for step in steps)


def test_an_unapplied_charge_waits_for_an_operator_until_it_is_acknowledged() -> None:
    """Money that fits no order is the operator's step, whatever the orders are; after the
    acknowledgement nobody must act.
    """
    steps = explain(_payment(_charge(_FAILED), unapplied=(_UNAPPLIED,)), _NOW).next_steps
    assert [step.actor for step in steps] == [Actor.OPERATOR]
    assert "7.00 EUR that stripe took as ch_9" in steps[0].action
    unbooked = replace(_UNAPPLIED, is_booked=False)
    steps = explain(_payment(_charge(_FAILED), unapplied=(unbooked,)), _NOW).next_steps
    assert [step.actor for step in steps] == [Actor.OPERATOR, Actor.PLATFORM]
    acknowledged = replace(_UNAPPLIED, acknowledge_time=_NOW)
    steps = explain(_payment(_charge(_FAILED), unapplied=(acknowledged,)), _NOW).next_steps
    assert [step.actor for step in steps] == [Actor.NOBODY]


def test_a_webhook_event_that_is_not_applied_is_a_next_step() -> None:
    """The platform still asks the provider about it."""
    webhook = WebhookFacts(
        "w-1",
        "stripe",
        "evt_1",
        "charge.failed",
        WebhookEventState.RECEIVED,
        _START,
        None,
        "ch_1",
        "",
    )
    (step,) = explain(_payment(_charge(_BOOKED), webhooks=(webhook,)), _NOW).next_steps
    assert step == NextStep(
        Actor.PLATFORM,
        "The platform asks stripe for the outcome, because of the webhook event charge.failed.",
        "webhookEvents/w-1",
    )


def test_the_summary_counts_the_orders_by_condition() -> None:
    """One sentence for each condition, with its number, and one for each reason of a failure."""
    charges = (_charge(_BOOKED), _charge(_FAILED), _charge(_BUYER), _charge(_BOOKED))
    assert explain(_payment(*charges, order_count=5), _NOW).summary == (
        "The payment c-1 of shop is OPEN. 1 of 5 orders is FAILED with INSUFFICIENT_FUNDS. "
        "2 of 5 orders are PAID and booked. 1 of 5 orders is PENDING and waits for the buyer at "
        "stripe. 1 order is left out. The buyer does not have enough money."
    )


def test_orders_of_a_combined_charge_share_an_entry() -> None:
    """Orders that change together are one entry, which names up to three of them."""
    transitions = tuple(
        OrderTransitionFacts(
            f"po-{number}", OrderStatus.SUCCESS, PaymentTransitionReason.BOOKED, _NOW
        )
        for number in range(1, 6)
    )
    titles = [
        entry.title
        for entry in explain(_payment(_charge(_BOOKED, transitions=transitions)), _NOW).entries
    ]
    assert (
        "5 orders (po-1, po-2, po-3, …) were booked: the seller's wallet was credited and the "
        "ledger posted." in titles
    )


def test_a_risk_rejected_order_of_a_combined_charge_does_not_hide_the_others() -> None:
    """The charge's next step is that of the orders that belong to it."""
    charge = ChargeFacts(
        "c-c-1", (_FAILED, _BUYER), attempts=(_ATTEMPT,), operation=_operation(NextAction.LOOK_UP)
    )
    assert explain(_payment(charge), _NOW).next_steps[0].actor is Actor.BUYER
