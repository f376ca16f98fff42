"""What a provider reports of a payout: its outcomes, and the transfers that they book."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.posting import check_balanced
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_core.payout.reported_transfer import (
    MoneyMovement,
    OutcomeEffect,
    PayoutRecord,
    Transfer,
    TransferMatch,
    apply_outcome,
    money_movements,
)
from tallystick_core.payout.state import HOLD_CAPTURED, POSSIBLY_SENT, PayoutState, transition
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
