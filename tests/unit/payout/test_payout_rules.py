"""The rules of pay-out: states, fingerprints, generated ids, approval and destinations."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.approval import needs_approval, require_second_approver
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import MAX_AMOUNT
from tallystick_core.operations.idempotency_key import format_provider_key
from tallystick_core.operations.kind import KindName
from tallystick_core.payout.batch import NewBatch, derive_payout_id, format_run_id, parse_batch_id
from tallystick_core.payout.destination import (
    DESTINATION_TRANSITIONS,
    DESTINATION_VERBS,
    TERMINAL_DESTINATION_STATES,
    DestinationState,
    DestinationTrigger,
    NewDestination,
    is_account_rejected,
    require_approvable,
    transition_destination,
)
from tallystick_core.payout.request import (
    NewPayout,
    classify_hold_failure,
    first_difference,
    parse_payout_id,
)
from tallystick_core.payout.state import (
    HOLD_CAPTURED,
    HOLD_OPEN,
    HOLD_RELEASED,
    TERMINAL_STATES,
    TRANSITIONS,
    VERBS,
    PayoutState,
    PayoutTrigger,
    transition,
)
from tallystick_core.provider.outcome import Declined, PayoutFailure, Returned, Succeeded, Unknown
from tallystick_core.validation import is_id, reject_card_number

PAYOUT = NewPayout("po-1", "dev", "shop", "seller", 1000, "EUR")
NEXT_STATES = {  # money.md: the allowed next states of each state
    "CREATED": {"AWAITING_APPROVAL", "READY", "FAILED", "CANCELLED"},
    "AWAITING_APPROVAL": {"READY", "REJECTED", "CANCELLED"},
    "READY": {"SUBMITTING", "CANCELLED"},
    "SUBMITTING": {"SUBMITTED", "IN_TRANSIT", "PAID", "FAILED"},
    "SUBMITTED": {"IN_TRANSIT", "PAID", "FAILED"},
    "IN_TRANSIT": {"PAID", "FAILED"},
    "PAID": {"RETURNED"},
}


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(PayoutState, PayoutTrigger)))
def test_every_pair_is_in_the_table_or_rejected_by_name(
    state: PayoutState, trigger: PayoutTrigger
) -> None:
    """The table is total: every other trigger is INVALID_STATE with state and verb."""
    if (state, trigger) in TRANSITIONS:
        assert transition(state, trigger) is TRANSITIONS[state, trigger]
        return
    with pytest.raises(ApiError) as error:
        transition(state, trigger)
    assert error.value.reason is ErrorReason.INVALID_STATE
    assert error.value.metadata == {"state": state, "verb": VERBS[trigger].name}
    assert (
        error.value.message == f"The payout is {state} and cannot be {VERBS[trigger].participle}."
    )


@pytest.mark.parametrize("state", PayoutState)
def test_each_state_has_exactly_its_documented_successors(state: PayoutState) -> None:
    """The states after each state are the documented ones; PAID is the only final state with
    transitions, and every state is reachable.
    """
    after = {to for (before, _), to in TRANSITIONS.items() if before is state and to is not state}
    assert after == {PayoutState(name) for name in NEXT_STATES.get(state, set())}
    assert state in TERMINAL_STATES or after
    assert not (state in TERMINAL_STATES - {PayoutState.PAID} and after)


def test_an_unknown_outcome_never_changes_a_payout() -> None:
    """An unknown outcome, or a request that was certainly not sent, changes no state; a payout that
    may have been sent is never cancelled or rejected.
    """
    assert all(
        to is before
        for (before, what), to in TRANSITIONS.items()
        if what in (PayoutTrigger.UNKNOWN, PayoutTrigger.NOT_SENT)
    )
    ended_states = {PayoutState.CANCELLED, PayoutState.REJECTED}
    unsent = {PayoutState.CREATED, PayoutState.AWAITING_APPROVAL, PayoutState.READY}
    assert {
        before for (before, _), to in TRANSITIONS.items() if to in ended_states and before is not to
    } == unsent
    assert {before for before, what in TRANSITIONS if what is PayoutTrigger.GIVEN_UP} == {
        PayoutState.SUBMITTING
    }


def test_in_every_state_the_money_is_held_captured_or_released() -> None:
    """O1: in each state but CREATED the money is held, captured or released; no transition skips
    the hold or releases captured money.
    """
    parts = [frozenset({PayoutState.CREATED}), HOLD_OPEN, HOLD_CAPTURED, HOLD_RELEASED]
    assert sorted(state for part in parts for state in part) == sorted(PayoutState)
    for (before, _), to in TRANSITIONS.items():
        if before in HOLD_CAPTURED:
            assert to in HOLD_CAPTURED
        if to in HOLD_CAPTURED and before not in HOLD_CAPTURED:
            assert before in HOLD_OPEN
        if before in HOLD_RELEASED:
            assert to is before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seller_account", "x"),
        ("amount", 1),
        ("amount", None),
        ("currency", "USD"),
        ("payout_destination_id", "d"),
        ("payout_id", "x"),
        ("owner", "x"),
    ],
)
def test_another_value_is_another_fingerprint_and_is_named(field: str, value: object) -> None:
    """K1: any other value changes the fingerprint, and the first that differs is named; the owner
    is not a field of the request.
    """
    changed = replace(PAYOUT, **{field: value})  # type: ignore[arg-type]
    assert changed.fingerprint() != PAYOUT.fingerprint()
    assert first_difference(changed, PAYOUT) == ("payout_id" if field == "owner" else field)


def test_a_payout_without_an_amount_has_its_own_fingerprint() -> None:
    """K1: a payout without an amount differs from one with any amount, and the first difference is
    named.
    """
    everything = replace(PAYOUT, amount=None)
    assert (
        everything.fingerprint()
        == replace(PAYOUT, amount=None).fingerprint()
        != PAYOUT.fingerprint()
    )
    assert (
        first_difference(replace(everything, amount=1000, currency="USD"), everything) == "amount"
    )


def test_destinations_and_batches_have_fingerprints_of_all_their_values() -> None:
    """K1: any other value of a destination or a batch changes its fingerprint."""
    destination = NewDestination("d-1", "dev", "shop", "seller", "EUR", "tok", "x")
    changed_destinations = [
        replace(destination, **{name: "other"})
        for name in NewDestination.__dataclass_fields__
        if name != "caller"
    ]
    batch = NewBatch("b-1", "dev", "shop", (PAYOUT, replace(PAYOUT, payout_id="po-2")))
    other_batches = [
        replace(batch, payout_batch_id="x"),
        replace(batch, owner="x"),
        replace(batch, payouts=(PAYOUT,)),
        NewBatch("b-1", "dev", "shop", (), "seller", "EUR"),
    ]
    other_batches += [
        NewBatch("b-1", "dev", "shop", (), "", "EUR"),
        NewBatch("b-1", "dev", "shop", (), "", "USD"),
    ]
    for values in ([destination, *changed_destinations], [batch, *other_batches]):
        assert len({value.fingerprint() for value in values}) == len(values)


def test_a_providers_key_names_the_payout_and_the_attempt() -> None:
    """money.md: the key is {environment}-p-{payout_id}-{attempt}."""
    assert format_provider_key("live", KindName.PAYOUT, "po-1", 2) == "live-p-po-1-2"


def test_the_ids_of_a_run_are_deterministic() -> None:
    """A cut-off has one run, whatever the time zone, and a seller one payout in it. Generated ids
    never look like card numbers, and callers cannot use a run's ids.
    """
    cut_off = datetime(2025, 7, 1, 14, tzinfo=UTC)
    assert (
        format_run_id("EUR", cut_off)
        == format_run_id("EUR", cut_off.astimezone(timezone(timedelta(hours=9))))
        == "run-EUR-20250701T1400Z"
    )
    payout_ids = {
        derive_payout_id(run, f"s-{n}")
        for n in range(2_000)
        for run in ("b-1", format_run_id("EUR", cut_off), format_run_id("USD", cut_off))
    }
    assert len(payout_ids) == 6_000
    for text in payout_ids | {
        format_run_id("EUR", cut_off + timedelta(minutes=n)) for n in range(20_000)
    }:
        assert is_id(text)
        reject_card_number(text, "payout_id")
    with pytest.raises(ApiError) as error:
        parse_batch_id("run-EUR-20250701T1400Z")
    assert error.value.reason is ErrorReason.FIELD_INVALID
    assert parse_batch_id("b-1") == "b-1"
    with pytest.raises(ApiError) as error:
        parse_payout_id(derive_payout_id("run-EUR-20250701T1400Z", "s"))
    assert error.value.reason is ErrorReason.FIELD_INVALID
    assert parse_payout_id("po-1") == "po-1"


@given(st.integers(1, MAX_AMOUNT), st.integers(0, MAX_AMOUNT))
def test_approval_is_required_only_above_the_threshold(amount: int, threshold: int) -> None:
    """A payout requires approval exactly if its currency has a threshold and its amount is above
    it.
    """
    assert needs_approval(amount, "EUR", {"EUR": threshold}) == (amount > threshold)
    assert not needs_approval(amount, "USD", {"EUR": threshold})


def test_the_creator_cannot_approve() -> None:
    """The creator of a payout cannot approve it."""
    require_second_approver("finance", "dev")
    with pytest.raises(ApiError) as error:
        require_second_approver("dev", "dev")
    assert error.value.reason is ErrorReason.SECOND_APPROVER_REQUIRED


@pytest.mark.parametrize("reason", ErrorReason)
def test_only_a_rejection_for_lack_of_funds_fails_a_payout(reason: ErrorReason) -> None:
    """Only insufficient funds, a missing wallet or a frozen wallet fail a payout; every other error
    leaves its state unchanged.
    """
    expected_reasons = {
        "INSUFFICIENT_FUNDS": "INSUFFICIENT_FUNDS",
        "NOT_FOUND": "INSUFFICIENT_FUNDS",
        "INVALID_STATE": "WALLET_FROZEN",
    }
    assert classify_hold_failure(reason) == expected_reasons.get(reason)


# Destinations and amounts


@pytest.mark.parametrize(
    ("state", "trigger"), list(itertools.product(DestinationState, DestinationTrigger))
)
def test_every_pair_of_a_destination_is_in_the_table_or_rejected_by_name(
    state: DestinationState, trigger: DestinationTrigger
) -> None:
    """The destinations' table is total, only a verified answer verifies, and nothing leaves
    UNUSABLE or DISABLED.
    """
    if (state, trigger) in DESTINATION_TRANSITIONS:
        after = transition_destination(state, trigger)
        assert after is DESTINATION_TRANSITIONS[state, trigger]
        assert after is state or state not in TERMINAL_DESTINATION_STATES
        assert (after is DestinationState.VERIFIED) == (trigger is DestinationTrigger.VERIFIED)
        return
    with pytest.raises(ApiError) as error:
        transition_destination(state, trigger)
    assert error.value.metadata == {"state": state, "verb": DESTINATION_VERBS[trigger].name}


def test_only_an_account_fault_ends_a_destination() -> None:
    """Only a rejection of the account, or a return that it caused, shows that a destination is
    unusable.
    """
    assert is_account_rejected(Declined(PayoutFailure.DESTINATION_REJECTED))
    assert is_account_rejected(Returned("t1", 1, "EUR", "closed", account_rejected=True))
    for outcome in (
        Declined(PayoutFailure.PROVIDER_DECLINED),
        Returned("t1", 1, "EUR"),
        Succeeded("t1", 1, "EUR"),
        Unknown("x"),
    ):
        assert not is_account_rejected(outcome)


def test_only_a_destination_that_awaits_approval_can_be_approved() -> None:
    """A destination that has ended, or awaits no approval, is rejected with INVALID_STATE."""
    for state, awaits in itertools.product(DestinationState, (True, False)):
        if awaits and state in (DestinationState.PENDING_VERIFICATION, DestinationState.VERIFIED):
            require_approvable(state, awaits_approval=True)
            continue
        with pytest.raises(ApiError) as error:
            require_approvable(state, awaits_approval=awaits)
        assert error.value.reason is ErrorReason.INVALID_STATE
        assert error.value.metadata == {"state": state, "verb": "APPROVE"}
        why = "" if state in TERMINAL_DESTINATION_STATES else ": it awaits no approval"
        assert error.value.message == f"The destination is {state} and cannot be approved{why}."
