"""Next actions for an operation that does not succeed immediately: steps and exhausted actions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import product
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick_core.operations.dead_letter import DeadLetterCause
from tallystick_core.operations.next_action import ExhaustedAction, NextAction, when_exhausted
from tallystick_core.payment.charge import next_action
from tallystick_core.payment.state import OrderStatus
from tallystick_core.payout.destination import DestinationState
from tallystick_core.payout.snapshot import PayoutSnapshot
from tallystick_core.payout.state import TERMINAL_STATES, PayoutState
from tallystick_core.provider.outcome import (
    NOT_CALLED_REASONS,
    FinalNotFound,
    NotSent,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_server.observability.tracing import current_context
from tallystick_server.operations.failed_step import FailedStep, classify_failure
from tallystick_server.operations.kind import OperationKind
from tallystick_server.operations.operator_handlers import parse_dead_letter_id
from tallystick_server.operations.reschedule import Rescheduler
from tallystick_server.operations.retry_policy import (
    UNLIMITED_REASONS,
    RetryPolicies,
    RetryPolicy,
    RetryStrategy,
)
from tallystick_server.payment.charge import Charge, OrderInCharge
from tallystick_server.payment.operations.charge import ChargeOperations
from tallystick_server.payment.operations.charge import next_action as charge_next_action
from tallystick_server.payout.destination_verification import DestinationVerification
from tallystick_server.payout.operation import PayoutOperation
from tallystick_server.payout.operations.destination_verification import VerificationOperations
from tallystick_server.payout.operations.payout import next_action as payout_next_action
from tallystick_server.payout.place_hold import plan_change
from tallystick_server.payout.poll_completed import CompletedPayoutPoller
from tallystick_storage.database import ConstraintViolation
from tallystick_storage.operations import Reschedule
from tallystick_storage.payout.payouts import NextPayoutPoll

CHARGE_FLAGS = ("attempt_ended", "must_end", "maybe_sent", "lookup_only", "key_honored")


@pytest.mark.parametrize("status", OrderStatus)
@pytest.mark.parametrize(
    "values",
    [
        dict(zip(CHARGE_FLAGS, values, strict=True))
        for values in product([False, True], repeat=len(CHARGE_FLAGS))
    ],
    ids=str,
)
def test_a_charge_is_sent_only_without_an_outcome_and_with_an_honored_key(
    status: OrderStatus, values: dict[str, bool]
) -> None:
    """K3: a charge is sent only if it is EXECUTING, unanswered, not cancelled, sends are not
    exhausted, and its key is certainly honored. A charge with an outcome is only booked.
    """
    step = next_action([status], **values)
    if status is OrderStatus.SUCCESS:
        assert step is NextAction.BOOK
    elif status is OrderStatus.NOT_STARTED:
        assert step is (
            NextAction.GIVE_UP
            if values["must_end"] and not values["attempt_ended"] and not values["maybe_sent"]
            else NextAction.RISK
        )
    elif values["attempt_ended"]:
        assert step is NextAction.APPLY_RECORDED
    elif values["must_end"]:
        assert step is (
            NextAction.CANCEL
            if values["maybe_sent"] or status is OrderStatus.PENDING
            else NextAction.GIVE_UP
        )
    elif status is not OrderStatus.EXECUTING or values["lookup_only"] or not values["key_honored"]:
        assert step is NextAction.LOOK_UP
    else:
        assert step is NextAction.SEND


def leased_payout(
    state: PayoutState, *, lookup_only: bool, age: float, booked: bool = False
) -> PayoutOperation:
    return PayoutOperation(
        operation_id="1",
        caller="c",
        attempt_number=1,
        provider="sandbox",
        provider_key="k",
        lease_token=1,
        lease_deadline=inf,
        traceparent="",
        context=current_context(),
        age_seconds=age,
        lookup_only=lookup_only,
        seller_account="s",
        amount=2,
        fee=1,
        reserve=0,
        currency="EUR",
        payout_destination_id="d",
        bank_account_token="ba_ok",
        snapshot=PayoutSnapshot(2, state, booked),
        message=payout_pb2.Payout(),
    )


@pytest.mark.parametrize(
    ("state", "lookup_only", "age"), list(product(PayoutState, [False, True], [0.0, 39.9, 40.0]))
)
def test_a_payout_is_sent_only_with_an_honored_key(
    state: PayoutState, lookup_only: bool, age: float
) -> None:
    """K3: a payout is sent only if it is SUBMITTING, sends are not exhausted, and its key outlasts
    the lease. Its hold is placed before, and one that awaits approval waits. A final payout is only
    booked.
    """
    step = payout_next_action(
        leased_payout(state, lookup_only=lookup_only, age=age), 0.0, 100.0, 60.0
    )
    if state in TERMINAL_STATES:
        assert step is NextAction.BOOK
    elif state in (PayoutState.CREATED, PayoutState.READY):
        assert step is NextAction.PLACE_HOLD
    elif state is PayoutState.AWAITING_APPROVAL:
        assert step is NextAction.WAIT
    else:
        assert (step is NextAction.SEND) == (
            state is PayoutState.SUBMITTING and not lookup_only and age < 40.0
        )
        assert step in (NextAction.SEND, NextAction.LOOK_UP)


@pytest.mark.parametrize(
    ("destination", "ends"),
    [
        (DestinationState.VERIFIED, []),
        (DestinationState.DISABLED, ["CANCELLED"]),
        (DestinationState.UNUSABLE, ["CANCELLED"]),
    ],
)
def test_a_payout_of_an_ended_destination_is_cancelled(
    destination: DestinationState, ends: list[str]
) -> None:
    """A payout whose destination ended while its hold was being placed is CANCELLED, whether it
    would need approval or be sent.
    """
    created = leased_payout(PayoutState.CREATED, lookup_only=False, age=0.0)
    for thresholds, way in (({"EUR": 1}, ["AWAITING_APPROVAL"]), ({}, ["READY"])):
        move = plan_change(created, None, destination, thresholds)
        states = [transition.snapshot.state for transition in move.transitions]
        assert states == [*way, *(ends or ["SUBMITTING"] * (way == ["READY"]))]
        assert move.awaits_approval == (states == ["AWAITING_APPROVAL"])


def test_a_payout_whose_answer_cannot_be_stored_is_polled_again() -> None:
    """A payout whose answer cannot be stored is polled again by its policy, and raises no error
    that would delay other payouts.
    """

    async def look_up(_item: PayoutOperation, _step: NextAction) -> Succeeded:
        return Succeeded("tr", 1, "EUR")

    async def record(_item: PayoutOperation, _outcome: object) -> None:
        raise ConstraintViolation("23514", "payout_check", "it cannot be")

    poller = CompletedPayoutPoller(
        None,  # type: ignore[arg-type]
        look_up,
        RetryPolicies(),
        record,
        record,
        lambda _: True,
    )
    look = asyncio.run(poller.poll(leased_payout(PayoutState.PAID, lookup_only=False, age=0.0), 3))
    assert look == NextPayoutPoll("1", 86_400.0, 3)


def test_each_reason_that_ends_in_a_dead_letter_is_a_cause() -> None:
    """The causes of dead letters are the retry reasons whose exhausted policy creates one. Some
    reasons are never exhausted.
    """
    never_exhausted = {
        *NOT_CALLED_REASONS,
        RetryReason.POST_COMPLETION_POLL,
        *UNLIMITED_REASONS,
    }
    assert set(DeadLetterCause) == {
        str(reason)
        for reason, maybe_sent in product(RetryReason, [False, True])
        if reason not in never_exhausted
        and when_exhausted(reason, maybe_sent=maybe_sent) is ExhaustedAction.DEAD_LETTER
    }


@pytest.mark.parametrize(("reason", "maybe_sent"), list(product(RetryReason, [False, True])))
def test_only_an_unsent_operation_fails_for_exhausted_tries(
    reason: RetryReason, maybe_sent: bool
) -> None:
    """An operation fails for exhausted tries only if nothing ever reached the provider; a charge
    that may have been made is alternately looked up and sent.
    """
    last = when_exhausted(reason, maybe_sent=maybe_sent)
    assert (last is ExhaustedAction.FAIL) == (reason is RetryReason.NOT_SENT and not maybe_sent)
    assert (last is ExhaustedAction.LOOK_UP) == (
        reason
        in {
            RetryReason.NO_ANSWER,
            RetryReason.SERVER_ERROR,
            RetryReason.THROTTLED,
            RetryReason.UNAUTHORIZED,
        }
        or (reason is RetryReason.NOT_SENT and maybe_sent)
    )
    assert (last is ExhaustedAction.RESEND_OR_LOOK_UP) == (
        reason in {RetryReason.NOT_FOUND, RetryReason.LOOKUP_INCONCLUSIVE}
    )


@given(
    st.sets(st.sampled_from(OrderStatus), min_size=1),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_charge_is_never_sent_after_expiry_cancellation_or_key_window(
    statuses: set[OrderStatus],
    answered: bool,
    ending: bool,
    maybe_sent: bool,
    lookup_only: bool,
    key_honored: bool,
) -> None:
    """Whatever the orders of a charge are, it is never sent after cancellation or expiry, after its
    key window, or before the risk check.
    """
    step = next_action(
        statuses,
        attempt_ended=answered,
        must_end=ending,
        maybe_sent=maybe_sent,
        lookup_only=lookup_only,
        key_honored=key_honored,
    )
    if answered or ending or not key_honored or statuses != {OrderStatus.EXECUTING}:
        assert step is not NextAction.SEND
    if maybe_sent or answered or OrderStatus.PENDING in statuses:
        assert step is not NextAction.GIVE_UP or statuses == {OrderStatus.NOT_STARTED}


@given(st.booleans(), st.integers(0, 2), st.floats(0, 200))
def test_after_the_key_window_only_unsent_charges_are_sent(
    maybe_sent: bool, not_found: int, age: float
) -> None:
    """K3: a charge is sent while its key is honored. Later it is sent only if it was never sent and
    its provider does not know it.
    """
    order = OrderInCharge(
        "o-1", 2, OrderStatus.EXECUTING, "b", "s", 5, 1, payment_pb2.PaymentOrder()
    )
    charge = leased_charge(
        orders=(order,), maybe_sent=maybe_sent, not_found_count=not_found, age_seconds=age
    )
    step = charge_next_action(charge, 0.0, 100.0, 60.0)
    assert (step is NextAction.SEND) == (age < 40.0 or (not maybe_sent and not_found > 0))


@given(
    st.floats(-10, 10),
    st.booleans(),
    st.booleans(),
    st.floats(0, 200),
    st.sampled_from([OrderStatus.NOT_STARTED, OrderStatus.EXECUTING, OrderStatus.PENDING]),
)
def test_a_cancelled_or_expired_charge_is_not_sent(
    to_expiry: float, cancelled: bool, maybe_sent: bool, age: float, status: OrderStatus
) -> None:
    """A charge that was cancelled or has expired fails immediately if it was certainly not sent;
    otherwise its provider is asked to cancel it: never SEND.
    """
    order = OrderInCharge("o-1", 2, status, "b", "s", 5, 1, payment_pb2.PaymentOrder())
    charge = leased_charge(
        orders=(order,),
        expires_at=to_expiry,
        cancelled=cancelled,
        maybe_sent=maybe_sent,
        age_seconds=age,
    )
    step = charge_next_action(charge, 0.0, 100.0, 60.0)
    if status is OrderStatus.NOT_STARTED:
        assert step in (NextAction.RISK, NextAction.GIVE_UP)
    elif cancelled or (to_expiry <= 0 and status is OrderStatus.EXECUTING):
        assert step is (
            NextAction.CANCEL if maybe_sent or status is OrderStatus.PENDING else NextAction.GIVE_UP
        )
    else:
        assert (step is NextAction.SEND) == (status is OrderStatus.EXECUTING and age + 60.0 < 100.0)


@pytest.mark.parametrize(
    "reason",
    [
        RetryReason.SERVER_ERROR,
        RetryReason.NO_ANSWER,
        RetryReason.THROTTLED,
        RetryReason.UNAUTHORIZED,
    ],
)
def test_lookups_and_sends_alternate(reason: RetryReason) -> None:
    """When sends are exhausted the charge is looked up immediately; without an answer it is sent
    again.
    """
    rescheduler = rescheduler_with(
        RetryPolicies(
            {("", RetryReason.LOOKUP_INCONCLUSIVE): RetryPolicy(RetryStrategy.FIXED, 7, 7, 2)}
        )
    )
    exhausted = leased_charge(maybe_sent=True, tries=dict.fromkeys(RetryReason, 1000))
    ask = rescheduler.decide(FailedStep(exhausted, reason, "", NextAction.SEND), 0.0)
    assert isinstance(ask, Reschedule)
    assert (ask.lookup_only, ask.delay_seconds, ask.maybe_sent) == (True, 0.0, True)
    for silent in (RetryReason.NOT_FOUND, RetryReason.LOOKUP_INCONCLUSIVE):
        reschedule = rescheduler.decide(
            FailedStep(
                replace(exhausted, lookup_only=True),
                silent,
                "",
                NextAction.LOOK_UP,
                is_not_found=silent is RetryReason.NOT_FOUND,
            ),
            0.0,
        )
        assert isinstance(reschedule, Reschedule)
        assert (reschedule.lookup_only, reschedule.maybe_sent, reschedule.not_found_count) == (
            False,
            False,
            int(silent is RetryReason.NOT_FOUND),
        )
        assert (
            reschedule.delay_seconds == 7
            if silent is RetryReason.LOOKUP_INCONCLUSIVE
            else (reschedule.delay_seconds or 0) >= 150
        )
    past = rescheduler.decide(
        FailedStep(exhausted, RetryReason.OUTCOME_UNKNOWN, "", NextAction.LOOK_UP), 0.0
    )
    assert past is ExhaustedAction.DEAD_LETTER


@pytest.mark.parametrize("reason", [RetryReason.NO_ANSWER, RetryReason.SERVER_ERROR])
def test_a_charge_without_an_answer_is_looked_up_soon(reason: RetryReason) -> None:
    """By the default policies a charge whose sends get no answer is looked up after a few of them,
    within a minute plus their timeouts.
    """
    rescheduler, waited_seconds, tries = rescheduler_with(RetryPolicies()), 0.0, 0
    while True:
        reschedule = rescheduler.decide(
            FailedStep(
                leased_charge(maybe_sent=True, tries={reason: tries}), reason, "", NextAction.SEND
            ),
            0.0,
        )
        assert isinstance(reschedule, Reschedule)
        if reschedule.lookup_only:
            break
        waited_seconds, tries = waited_seconds + (reschedule.delay_seconds or 0.0), tries + 1
    assert tries <= 5
    assert waited_seconds <= 60


def test_account_verification_is_retried_without_limit() -> None:
    """Verifying an account is harmless and depends on no key window: without an answer it is
    repeated, and never dead-lettered.
    """
    account = DestinationVerification(
        operation_id="1",
        caller="t",
        attempt_number=1,
        provider="p",
        provider_key="",
        lease_token=1,
        lease_deadline=0.0,
        traceparent="",
        context=current_context(),
        age_seconds=1e9,
        maybe_sent=True,
        tries=dict.fromkeys(RetryReason, 1000),
        currency="EUR",
        bank_account_token="ba_ok",
        state=DestinationState.PENDING_VERIFICATION,
    )
    rescheduler = rescheduler_with(RetryPolicies())
    outcomes: list[NotSent | Unknown] = [
        Unknown("", RetryReason.SERVER_ERROR),
        Unknown(""),
        NotSent(""),
    ]
    for step, silent in product((NextAction.SEND, NextAction.LOOK_UP), outcomes):
        failed_step = classify_failure(
            account,
            silent,
            step,
            key_honored=account.is_key_honored(86_400.0, 60.0),
            awaits_provider=False,
        )
        assert failed_step is not None
        reschedule = rescheduler.decide(failed_step, 0.0)
        assert isinstance(reschedule, Reschedule)
        assert reschedule.lookup_only == (step is NextAction.SEND)


@given(st.floats(0, 100), st.integers(1, 5), st.integers(0, 8), st.none() | st.floats(0, 200))
def test_not_found_is_proof_only_by_the_providers_rule(
    seconds: float, times: int, expected: int, since_sent: float | None
) -> None:
    """The answer "not found" is proof if the provider gave it often enough, and late enough after
    the last possible send; never if that time is unknown.
    """
    assert FinalNotFound(seconds, times).is_conclusive(expected, since_sent) == (
        since_sent is not None and since_sent >= seconds and expected >= times
    )


_ORDER = OrderInCharge(
    "o-1", 2, OrderStatus.EXECUTING, "b", "s", 100, 0, payment_pb2.PaymentOrder()
)


def leased_charge(**values: Any) -> Charge:
    """A charge that was just accepted, except for the given fields."""
    fields: dict[str, Any] = {
        "operation_id": "o-1",
        "checkout_id": "c-1",
        "caller": "t",
        "owner": "t",
        "attempt_number": 1,
        "provider": "p",
        "provider_key": "k",
        "currency": "EUR",
        "payment_token": "t",
        "payment_method_type": "CARD",
        "orders": (_ORDER,),
        "lease_token": 1,
        "lease_deadline": 0.0,
        "traceparent": "",
        "context": current_context(),
        **values,
    }
    return Charge(**fields)


def rescheduler_with(policies: RetryPolicies) -> Rescheduler:
    """A rescheduler that only decides: it has no database."""
    nothing: Any = SimpleNamespace(run=None, fall_back=None, batcher=None)
    kinds: list[OperationKind[Any]] = [
        ChargeOperations(nothing, nothing, nothing, policies, 60.0, nothing).kind(),
        VerificationOperations(nothing, 60.0).kind(),
    ]
    return Rescheduler(nothing, policies, {kind.name: kind for kind in kinds})


def test_each_retry_reason_has_its_own_count() -> None:
    """The first 503 after three timeouts uses the first wait: each retry reason has its own
    count.
    """
    charge = leased_charge(tries={RetryReason.NO_ANSWER: 3})
    decided = rescheduler_with(RetryPolicies()).decide(
        FailedStep(charge, RetryReason.SERVER_ERROR, "503", NextAction.SEND), 0.0
    )
    assert isinstance(decided, Reschedule)
    assert not decided.lookup_only
    assert decided.retry_counts == {"NO_ANSWER": 3, "SERVER_ERROR": 1}
    exhausted = leased_charge(tries={RetryReason.SERVER_ERROR: 3})
    decided = rescheduler_with(RetryPolicies()).decide(
        FailedStep(exhausted, RetryReason.SERVER_ERROR, "503", NextAction.SEND), 0.0
    )
    assert isinstance(decided, Reschedule)
    assert decided.lookup_only


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_a_retry_after_is_obeyed(wait: float, retry_after: float) -> None:
    """A charge is claimed again after the provider's retry time and the policy's wait."""
    charge = leased_charge()
    rescheduler = rescheduler_with(
        RetryPolicies(
            {("p", RetryReason.THROTTLED): RetryPolicy(RetryStrategy.FIXED, wait, wait, 5)}
        )
    )
    decided = rescheduler.decide(
        FailedStep(charge, RetryReason.THROTTLED, "429", NextAction.SEND, retry_after=retry_after),
        0.0,
    )
    assert isinstance(decided, Reschedule)
    assert decided.delay_seconds == max(wait, retry_after)


@pytest.mark.parametrize(
    "reason",
    [
        RetryReason.OUTCOME_UNKNOWN,
        RetryReason.PENDING,
        RetryReason.NO_ANSWER,
        RetryReason.CIRCUIT_OPEN,
    ],
)
@pytest.mark.parametrize(("now", "wait"), [(0.0, 5.0), (5.5, 0.0)])
def test_a_charge_is_due_at_its_time_limit(reason: RetryReason, now: float, wait: float) -> None:
    """No wait exceeds the time limit of a payment; if that passed while the provider answered, the
    charge is due immediately.
    """
    rescheduler = rescheduler_with(
        RetryPolicies(
            {("p", reason): RetryPolicy(RetryStrategy.FIXED, 600, 600, 9) for reason in RetryReason}
        )
    )
    charge = leased_charge(end_deadline=5.0, maybe_sent=True)
    retry_after = 600.0 if reason is RetryReason.CIRCUIT_OPEN else 0.0
    decided = rescheduler.decide(
        FailedStep(charge, reason, "", NextAction.LOOK_UP, retry_after), now
    )
    assert isinstance(decided, Reschedule)
    assert decided.delay_seconds == wait


@pytest.mark.parametrize("subject", ["charges-o-", "payouts-", "payoutDestinations-"])
def test_every_dead_letter_has_a_valid_name(subject: str) -> None:
    """An operator can name every dead letter, even the hundredth of an operation with the longest
    id that a caller may give.
    """
    dead_letter_id = f"{subject}{64 * 'a'}-100"
    assert parse_dead_letter_id(dead_letter_id) == dead_letter_id
