"""The rules of pay-out: states, fingerprints, generated ids, outcomes and their postings, and
payable amounts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.posting import check_balanced
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_core.money import MAX_AMOUNT
from tallystick_core.payout.approval import needs_approval, require_second_approver
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
from tallystick_core.payout.operation_ids import format_payout_operation_id
from tallystick_core.payout.quote import (
    DestinationReadiness,
    PayoutBlocker,
    PayoutTerms,
    WalletBalance,
    quote_amount,
    quote_payout,
)
from tallystick_core.payout.reported_transfer import (
    MoneyMovement,
    OutcomeEffect,
    PayoutRecord,
    Transfer,
    TransferMatch,
    apply_outcome,
    money_movements,
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
    POSSIBLY_SENT,
    TERMINAL_STATES,
    TRANSITIONS,
    VERBS,
    PayoutState,
    PayoutTrigger,
    transition,
)
from tallystick_core.provider.idempotency_key import format_provider_key
from tallystick_core.provider.outcome import (
    Declined,
    FailureReason,
    InTransit,
    NotSent,
    PayoutFailure,
    PayoutOutcome,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
)
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
    assert format_provider_key("live", format_payout_operation_id("po-1"), 2) == "live-p-po-1-2"


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


# Outcomes

NET, FEE = 95, 5
_REFERENCES = st.sampled_from(["t1", "t2", "t3"])
_CURRENCIES = st.sampled_from(["EUR", "EUR", "EUR", "USD"])
_PAID_OUTCOMES = st.builds(
    Succeeded, _REFERENCES, st.sampled_from([NET, NET, NET, 90, 100]), _CURRENCIES
)
_RETURNED_OUTCOMES = st.builds(
    Returned, _REFERENCES, st.sampled_from([NET, 50, 90, 200]), _CURRENCIES
)
_OTHER_OUTCOMES: list[PayoutOutcome] = [
    Submitted("t1"),
    InTransit("t1"),
    NotSent("x"),
    Unknown("x"),
    Declined(PayoutFailure.PROVIDER_DECLINED),
    Declined(FailureReason.INSUFFICIENT_FUNDS),
]
_OUTCOME_LISTS = st.lists(
    st.one_of(_PAID_OUTCOMES, _RETURNED_OUTCOMES, st.sampled_from(_OTHER_OUTCOMES)), max_size=8
)


def _apply_outcome(
    record: PayoutRecord, outcome: PayoutOutcome
) -> tuple[PayoutRecord, OutcomeEffect]:
    """The record after an outcome, with the state from the table."""
    effect = apply_outcome(record, outcome)
    state = record.state
    for trigger in effect.triggers:
        state = transition(state, trigger)
    return replace(
        record,
        state=state,
        transfers={
            **record.transfers,
            **{transfer.reference: transfer for transfer in effect.transfers},
        },
    ), effect


def _apply_outcomes(
    outcomes: list[PayoutOutcome], state: PayoutState = PayoutState.SUBMITTING
) -> PayoutRecord:
    record = PayoutRecord(state, NET, "EUR")
    for outcome in outcomes:
        record, _ = _apply_outcome(record, outcome)
    return record


def _movements_of(record: PayoutRecord) -> list[MoneyMovement]:
    return [
        movement
        for transfer in record.transfers.values()
        for movement in money_movements("po-1", "bank", "s", NET + FEE, FEE, transfer)
    ]


@given(st.sampled_from(sorted(POSSIBLY_SENT)), _OUTCOME_LISTS)
def test_every_provider_report_counts_once(
    state: PayoutState, outcomes: list[PayoutOutcome]
) -> None:
    """H1, O2: no sequence of outcomes leaves the table. Each reported transfer is recorded once
    with its first amounts. A repeat changes nothing, and a repeat with other amounts requires an
    operator.
    """
    transfers = (
        {}
        if state not in HOLD_CAPTURED
        else {
            "t1": Transfer(
                "t1",
                NET,
                "EUR",
                TransferMatch.EXACT,
                *((NET, "EUR") if state == "RETURNED" else ()),
            )
        }
    )
    record = PayoutRecord(state, NET, "EUR", transfers)
    for outcome in outcomes:
        before = record
        record, verdict = _apply_outcome(record, outcome)
        if verdict.transfers:
            assert isinstance(outcome, Succeeded | Returned)
            assert verdict.triggers
        for reference, transfer in before.transfers.items():
            current_transfer = record.transfers[reference]
            assert replace(current_transfer, returned_amount=None, returned_currency="") == replace(
                transfer, returned_amount=None, returned_currency=""
            )
            assert transfer.returned_amount in (None, current_transfer.returned_amount)
        if isinstance(outcome, Succeeded | Returned):
            assert outcome.reference in record.transfers
            transfer = record.transfers[outcome.reference]
            first = (
                (transfer.amount, transfer.currency)
                if isinstance(outcome, Succeeded)
                else (transfer.returned_amount, transfer.returned_currency)
            )
            assert _apply_outcome(record, outcome) == (
                record,
                OutcomeEffect(is_conflicting=(outcome.amount, outcome.currency) != first),
            )
    assert (
        sum(
            transfer.match in (TransferMatch.EXACT, TransferMatch.AFTER_FAILURE)
            for transfer in record.transfers.values()
        )
        <= 1
    )
    assert (record.state in HOLD_CAPTURED) == any(
        transfer.match is TransferMatch.EXACT for transfer in record.transfers.values()
    )


@given(_OUTCOME_LISTS)
def test_bookings_equal_the_transfers(outcomes: list[PayoutOutcome]) -> None:
    """L1, O2: each movement balances under its own key, the seller's lines equal the wallet's
    change, and clearing equals the provider's transfers.
    """
    record = _apply_outcomes(outcomes)
    movements = _movements_of(record)
    assert len({(fact.kind, fact.source_id) for fact in movements}) == len(movements)
    clearing: Counter[str] = Counter()
    for fact in movements:
        check_balanced(fact.lines)
        assert (
            sum(
                line.amount
                for line in fact.lines
                if line.account == "sellers/s" and line.currency == "EUR"
            )
            == fact.seller_change
        )
        assert all(line.amount for line in fact.lines)
        assert all(line.currency == "EUR" for line in fact.lines if line.account == "sellers/s")
        for line in fact.lines:
            clearing[line.currency] += line.amount if line.account == "payouts/bank/clearing" else 0
    for transfer in record.transfers.values():
        clearing[transfer.currency] -= transfer.amount
        clearing[transfer.returned_currency] += transfer.returned_amount or 0
    assert not any(clearing.values())


@given(
    st.permutations(
        [
            Submitted("t1"),
            InTransit("t1"),
            Succeeded("t1", NET, "EUR"),
            Returned("t1", 60, "EUR"),
            Unknown("x"),
            Succeeded("t1", NET, "EUR"),
        ]
    )
)
def test_the_sequence_of_reports_makes_no_difference(
    outcomes: list[PayoutOutcome],
) -> None:
    """H1: a payout that was paid and partly returned is RETURNED with the same movements, in any
    order and number of reports.
    """
    record = _apply_outcomes(outcomes)
    assert record.state is PayoutState.RETURNED
    assert record.transfers == {"t1": Transfer("t1", NET, "EUR", TransferMatch.EXACT, 60, "EUR")}
    assert [(fact.kind, fact.source_id, fact.seller_change) for fact in _movements_of(record)] == [
        (PostingKind.PAYOUT, "po-1", -100),
        (PostingKind.PAYOUT_RETURN, "po-1", 60),
    ]


@pytest.mark.parametrize(
    ("outcomes", "state", "seller", "matches"),
    [
        ([Declined(PayoutFailure.PROVIDER_DECLINED)], "FAILED", [], []),
        ([Succeeded("t1", NET, "EUR")], "PAID", [-100], ["EXACT"]),
        (
            [Declined(PayoutFailure.PROVIDER_DECLINED), Succeeded("t1", NET, "EUR")],
            "FAILED",
            [-100],
            ["AFTER_FAILURE"],
        ),
        (
            [Declined(PayoutFailure.PROVIDER_DECLINED), Returned("t1", NET, "EUR")],
            "FAILED",
            [-100, 95],
            ["AFTER_FAILURE"],
        ),
        ([Succeeded("t1", 90, "EUR")], "FAILED", [-90], ["AMOUNT_MISMATCH"]),
        ([Succeeded("t1", NET, "USD")], "FAILED", [0], ["CURRENCY_MISMATCH"]),
        (
            [Succeeded("t1", NET, "EUR"), Succeeded("t2", NET, "EUR")],
            "PAID",
            [-100, -95],
            ["EXACT", "DUPLICATE"],
        ),
        (
            [Succeeded("t1", NET, "EUR"), Succeeded("t2", NET, "EUR"), Returned("t2", NET, "EUR")],
            "PAID",
            [-100, -95, 95],
            ["EXACT", "DUPLICATE"],
        ),
        ([Returned("t1", NET, "EUR")], "RETURNED", [-100, 95], ["EXACT"]),
        ([Returned("t1", NET + 1, "EUR")], "PAID", [-100, 0], ["EXACT"]),
        ([Returned("t1", NET, "USD")], "PAID", [-100, 0], ["EXACT"]),
        (
            [Succeeded("t1", 90, "USD"), Returned("t1", 90, "USD")],
            "FAILED",
            [0, 0],
            ["CURRENCY_MISMATCH"],
        ),
        (
            [
                Succeeded("t1", NET, "EUR"),
                Declined(PayoutFailure.PROVIDER_DECLINED),
                InTransit("t1"),
            ],
            "PAID",
            [-100],
            ["EXACT"],
        ),
    ],
)
def test_every_transfer_is_debited_or_credited(
    outcomes: list[PayoutOutcome], state: str, seller: list[int], matches: list[str]
) -> None:
    """Movements that take money are debited, those that give money are credited, and the state
    determines the remainder.
    """
    record = _apply_outcomes(outcomes)
    assert record.state == state
    assert [fact.seller_change for fact in _movements_of(record)] == seller
    assert [transfer.match for transfer in record.transfers.values()] == matches


@pytest.mark.parametrize(
    "outcome", [*_OTHER_OUTCOMES, Succeeded("t1", NET, "EUR"), Returned("t1", NET, "EUR")]
)
@pytest.mark.parametrize("state", sorted(set(PayoutState) - POSSIBLY_SENT))
def test_an_outcome_of_an_unsent_payout_is_rejected(
    state: PayoutState, outcome: PayoutOutcome
) -> None:
    """An outcome of a payout that was never sent is rejected, and moves no money."""
    with pytest.raises(ApiError) as error:
        apply_outcome(PayoutRecord(state, NET, "EUR"), outcome)
    assert error.value.reason is ErrorReason.INVALID_STATE


def test_only_a_return_credits_a_paid_payout() -> None:
    """A paid payout that is reported as failed stays PAID and requires an operator. A failure has
    the provider's reason, never a reason of pay-in.
    """
    paid_record = _apply_outcomes([Succeeded("t1", NET, "EUR")])
    assert apply_outcome(paid_record, Declined(PayoutFailure.PROVIDER_DECLINED)) == OutcomeEffect(
        is_conflicting=True
    )
    submitted_record = PayoutRecord(PayoutState.SUBMITTED, NET, "EUR")
    assert (
        apply_outcome(submitted_record, Declined(PayoutFailure.DESTINATION_REJECTED)).failure
        is PayoutFailure.DESTINATION_REJECTED
    )
    assert (
        apply_outcome(submitted_record, Declined(FailureReason.BUYER_CANCELLED)).failure
        is PayoutFailure.PROVIDER_DECLINED
    )
    assert (
        apply_outcome(submitted_record, Succeeded("t1", 1, "EUR")).failure
        is PayoutFailure.PROVIDER_MISMATCH
    )


def test_a_payout_is_booked_with_its_fee() -> None:
    """money.md: PAID debits the seller, credits the platform's fee and clears the remainder; a
    return credits the returned amount, without the fee.
    """
    paid_movement, return_movement = money_movements(
        "po-1", "bank", "s", 100, 5, Transfer("t1", 95, "EUR", TransferMatch.EXACT, 95, "EUR")
    )
    assert paid_movement.lines == (
        JournalLine("sellers/s", "EUR", -100),
        JournalLine("payouts/bank/clearing", "EUR", 95),
        JournalLine("platform/fees", "EUR", 5),
    )
    assert return_movement.lines == (
        JournalLine("payouts/bank/clearing", "EUR", -95),
        JournalLine("sellers/s", "EUR", 95),
    )
    strange = money_movements(
        "po-1", "bank", "s", 100, 5, Transfer("t1", 95, "USD", TransferMatch.CURRENCY_MISMATCH)
    )
    assert strange[0].lines == (
        JournalLine("unapplied/bank", "USD", -95),
        JournalLine("payouts/bank/clearing", "USD", 95),
    )


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


# Small amounts, so that limits are hit exactly.
_MINOR_AMOUNTS = st.integers(0, 20) | st.integers(0, 20) | st.integers(0, 2 * MAX_AMOUNT)
_BALANCES = st.builds(
    lambda p, a, h, o, f: WalletBalance(p, 0 if o else a, h, o, f),
    _MINOR_AMOUNTS,
    _MINOR_AMOUNTS,
    _MINOR_AMOUNTS,
    st.just(0) | _MINOR_AMOUNTS,
    st.sampled_from([False, False, False, True]),
)
_TERMS = st.builds(PayoutTerms, *(st.just(0) | st.integers(0, 12),) * 3)
_USABLE_DESTINATION = DestinationReadiness(DestinationState.VERIFIED, in_cooldown=False)
_OTHER_DESTINATIONS = [
    None,
    *itertools.starmap(DestinationReadiness, itertools.product(DestinationState, [False, True])),
]
_DESTINATIONS = st.sampled_from([_USABLE_DESTINATION] * 20 + _OTHER_DESTINATIONS)


@given(_BALANCES, _TERMS, _DESTINATIONS)
def test_quote_and_blockers_sum_to_the_wallet(
    funds: WalletBalance, terms: PayoutTerms, destination: DestinationReadiness | None
) -> None:
    """No payout violates a term, and the quoted amount plus the amount of each blocker is the
    whole wallet.
    """
    can = quote_payout(funds, terms, destination)
    blocking = {
        limit: kept_amount
        for limit, kept_amount in can.shortfalls.items()
        if list(PayoutBlocker).index(limit)
        >= list(PayoutBlocker).index(PayoutBlocker.MINIMUM_AMOUNT)
    }
    keeping = sum(
        can.shortfalls.get(limit, 0)
        for limit in (
            PayoutBlocker.PENDING_FUNDS,
            PayoutBlocker.HELD,
            PayoutBlocker.RESERVE,
            PayoutBlocker.MAXIMUM_AMOUNT,
        )
    )
    kept_by_blocks = set(blocking.values())
    assert len(kept_by_blocks) <= 1
    assert (
        can.amount + keeping + sum(kept_by_blocks) == funds.pending + funds.available + funds.held
    )
    assert can.shortfalls.get(PayoutBlocker.OWED, 0) == funds.owed
    assert list(can.shortfalls) == [limit for limit in PayoutBlocker if limit in can.shortfalls]
    if can.amount:
        assert (
            terms.minimum_amount <= can.amount <= min(funds.available - terms.reserve, MAX_AMOUNT)
        )
        assert can.net == can.amount - terms.fee > 0
        assert not funds.frozen
        assert destination == _USABLE_DESTINATION
    else:
        assert can.net == 0
        assert blocking or funds.available <= terms.reserve


@pytest.mark.parametrize(
    ("funds", "terms", "destination", "limits"),
    [
        (WalletBalance(available=100), PayoutTerms(), _USABLE_DESTINATION, {}),
        (
            WalletBalance(available=100),
            PayoutTerms(reserve=30),
            _USABLE_DESTINATION,
            {"RESERVE": 30},
        ),
        (
            WalletBalance(available=20),
            PayoutTerms(reserve=30),
            _USABLE_DESTINATION,
            {"RESERVE": 20},
        ),
        (
            WalletBalance(available=100),
            PayoutTerms(minimum_amount=101),
            _USABLE_DESTINATION,
            {"MINIMUM_AMOUNT": 100},
        ),
        (WalletBalance(available=100), PayoutTerms(minimum_amount=100), _USABLE_DESTINATION, {}),
        (WalletBalance(available=100), PayoutTerms(fee=100), _USABLE_DESTINATION, {"FEE": 100}),
        (WalletBalance(available=100), PayoutTerms(fee=99), _USABLE_DESTINATION, {}),
        (
            WalletBalance(pending=7, held=8, owed=9),
            PayoutTerms(minimum_amount=5, fee=1),
            _USABLE_DESTINATION,
            {"PENDING_FUNDS": 7, "HELD": 8, "OWED": 9},
        ),
        (
            WalletBalance(available=100, frozen=True),
            PayoutTerms(),
            None,
            {"FROZEN": 100, "NO_DESTINATION": 100},
        ),
        (
            WalletBalance(),
            PayoutTerms(),
            DestinationReadiness(DestinationState.PENDING_VERIFICATION, in_cooldown=True),
            {"DESTINATION_UNVERIFIED": 0},
        ),
        (
            WalletBalance(available=1),
            PayoutTerms(),
            DestinationReadiness(DestinationState.VERIFIED, in_cooldown=True),
            {"DESTINATION_COOLDOWN": 1},
        ),
        (
            WalletBalance(available=1),
            PayoutTerms(),
            DestinationReadiness(DestinationState.UNUSABLE, in_cooldown=False),
            {"DESTINATION_UNUSABLE": 1},
        ),
        (
            WalletBalance(available=1),
            PayoutTerms(),
            DestinationReadiness(DestinationState.DISABLED, in_cooldown=False),
            {"DESTINATION_UNUSABLE": 1},
        ),
        (
            WalletBalance(available=MAX_AMOUNT + 5),
            PayoutTerms(),
            _USABLE_DESTINATION,
            {"MAXIMUM_AMOUNT": 5},
        ),
        (
            WalletBalance(available=MAX_AMOUNT + 5, frozen=True),
            PayoutTerms(),
            _USABLE_DESTINATION,
            {"MAXIMUM_AMOUNT": 5, "FROZEN": MAX_AMOUNT},
        ),
    ],
)
def test_each_blocker_has_its_blocked_amount(
    funds: WalletBalance,
    terms: PayoutTerms,
    destination: DestinationReadiness | None,
    limits: dict[str, int],
) -> None:
    """Each blocker is reported exactly when it applies, with the amount that it blocks by
    itself.
    """
    assert dict(quote_payout(funds, terms, destination).shortfalls) == limits


@given(st.none() | st.integers(1, 25), _BALANCES, _TERMS, _DESTINATIONS)
def test_a_payout_is_accepted_exactly_if_it_can_be_paid(
    requested_amount: int | None,
    funds: WalletBalance,
    terms: PayoutTerms,
    destination: DestinationReadiness | None,
) -> None:
    """The accepted amount is the requested one or everything payable, and leaves the reserve;
    everything else is rejected with its blocker.
    """
    can = quote_payout(funds, terms, destination)
    try:
        amount = quote_amount(requested_amount, funds, terms, destination)
    except ApiError as error:
        if error.reason is ErrorReason.AMOUNT_OUT_OF_RANGE:
            assert requested_amount is not None
            assert requested_amount < terms.minimum_amount or requested_amount <= terms.fee
            return
        assert error.metadata["blockers"] == ",".join(can.shortfalls)
        nowhere = any(
            limit.endswith("DESTINATION") or limit.startswith("DESTINATION")
            for limit in can.shortfalls
        )
        expected = (
            ErrorReason.INVALID_STATE
            if funds.frozen
            else ErrorReason.DESTINATION_UNUSABLE
            if nowhere
            else ErrorReason.INSUFFICIENT_FUNDS
        )
        assert error.reason is expected
        assert funds.frozen or nowhere or (requested_amount or 1) > can.amount
        return
    assert amount == (can.amount if requested_amount is None else requested_amount)
    assert amount - terms.fee > 0
    assert funds.available - amount >= terms.reserve
    assert amount >= terms.minimum_amount


@pytest.mark.parametrize(
    ("requested_amount", "reason"),
    [
        (9, "AMOUNT_OUT_OF_RANGE"),
        (10, "AMOUNT_OUT_OF_RANGE"),
        (11, "AMOUNT_OUT_OF_RANGE"),
        (12, None),
        (70, None),
        (71, "INSUFFICIENT_FUNDS"),
        (None, None),
    ],
)
def test_requested_amounts_satisfy_the_terms(
    requested_amount: int | None, reason: str | None
) -> None:
    """A requested amount is at least the minimum, more than the fee, and no more than the wallet
    minus the reserve.
    """
    funds = WalletBalance(available=100)
    for terms in (
        PayoutTerms(minimum_amount=12, fee=10, reserve=30),
        PayoutTerms(minimum_amount=0, fee=11, reserve=30),
    ):
        try:
            assert quote_amount(requested_amount, funds, terms, _USABLE_DESTINATION) == (
                requested_amount or 70
            )
            assert reason is None
        except ApiError as error:
            assert error.reason == reason
