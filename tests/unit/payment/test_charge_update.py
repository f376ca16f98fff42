"""The fold of a provider's words on a charge: permutations and repeats find one end state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.payment.charge_update import (
    ChargeEffect,
    ChargeSnapshot,
    UnappliedCause,
    apply,
)
from tallystick_core.payment.state import TERMINAL_STATUSES, OrderStatus
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    FailureReason,
    NotSent,
    Pending,
    PendingReason,
    Succeeded,
    Unknown,
)

CHARGE = ChargeSnapshot(500, "EUR", OrderStatus.EXECUTING)
PAID = Succeeded("ch_1", 500, "EUR")
DECLINED = Declined(FailureReason.PROVIDER_DECLINED, "no", "ch_1")
_NOT_FINAL: list[ChargeOutcome] = [
    Pending(PendingReason.BUYER_ACTION, "ch_1", "https://psp/1"),
    Pending(PendingReason.PROVIDER_REVIEW, "ch_1"),
    NotSent("no connection"),
    Unknown("no answer"),
]
not_final_outcomes = st.sampled_from(_NOT_FINAL)
# What a reference names has one amount: a provider that changes its mind is another property.
successes = st.sampled_from(["ch_1", "ch_2", "ch_3"]).map(
    lambda reference: Succeeded(reference, 501 if reference == "ch_3" else 500, "EUR")
)
outcomes = st.lists(st.one_of(successes, st.just(DECLINED), not_final_outcomes), max_size=8)
starts = st.sampled_from([OrderStatus.EXECUTING, OrderStatus.PENDING])


BY_PAGE = replace(CHARGE, has_page=True)
OPEN_PAGE = Pending(PendingReason.BUYER_ACTION, "cs_1", "https://psp/1")
IN_REVIEW = Pending(PendingReason.PROVIDER_REVIEW, "cs_1")


def test_a_page_keeps_its_url_and_never_returns_from_review_to_the_buyer() -> None:
    """A report that the buyer must act is older than one that the provider reviews the payment."""
    later_url = replace(OPEN_PAGE, next_action_url="https://psp/2")
    assert [
        effect.snapshot.pending
        for effect in effects(BY_PAGE, [OPEN_PAGE, later_url, IN_REVIEW, OPEN_PAGE])
    ] == [OPEN_PAGE, OPEN_PAGE, IN_REVIEW, IN_REVIEW]


def fold(charge: ChargeSnapshot, sequence: Sequence[ChargeOutcome]) -> ChargeSnapshot:
    return reduce(lambda snapshot, outcome: apply(snapshot, outcome).snapshot, sequence, charge)


def effects(charge: ChargeSnapshot, sequence: Sequence[ChargeOutcome]) -> list[ChargeEffect]:
    found = []
    for outcome in sequence:
        found.append(apply(charge, outcome))
        charge = found[-1].snapshot
    return found


def money_by_reference(charge: ChargeSnapshot) -> Counter[tuple[str, int, str]]:
    """All money of a charge: that of its orders, and what is unapplied."""
    money = list(charge.unapplied.values())
    if charge.status is OrderStatus.SUCCESS and isinstance(charge.recorded, Succeeded):
        money.append(charge.recorded)
    return Counter((taken.reference, taken.amount, taken.currency) for taken in money)


@given(st.data(), starts, st.lists(not_final_outcomes, max_size=4), st.sampled_from([1, 2, 3]))
def test_one_final_word_has_one_end_state_in_any_order(
    data: st.DataObject, start: OrderStatus, others: list[ChargeOutcome], repeats: int
) -> None:
    """While the final outcomes of a charge agree, the end state is the same for every order of
    arrival, for repeats, and for words that are not final before, between and after.
    """
    finals: list[ChargeOutcome] = [PAID, DECLINED, Succeeded("ch_3", 501, "EUR")]
    final = data.draw(st.sampled_from(finals))
    sequence = data.draw(st.permutations([*others, *[final] * repeats]))
    charge = replace(CHARGE, status=start)
    assert fold(charge, sequence) == fold(charge, [final])


@given(outcomes, st.randoms(use_true_random=False), starts)
def test_all_money_is_booked_once_in_any_order(
    sequence: list[ChargeOutcome], random: object, start: OrderStatus
) -> None:
    """P1, P2: whatever arrives in whatever order, the money of the orders and the unapplied money
    together are exactly what the provider reports, once for each reference.

    Only which part is which depends on the order, if final outcomes contradict each other: the
    first one recorded decides about the orders, because an order that is SUCCESS or FAILED has been
    shown to its caller and never changes again.
    """
    shuffled = list(sequence)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    reported = {
        (outcome.reference, outcome.amount, outcome.currency)
        for outcome in sequence
        if isinstance(outcome, Succeeded)
    }
    for order in (sequence, shuffled):
        end = fold(replace(CHARGE, status=start), order)
        assert money_by_reference(end) == Counter(reported)
        finals = [outcome for outcome in order if isinstance(outcome, Succeeded | Declined)]
        assert (end.status in TERMINAL_STATUSES) == bool(finals)
        assert end.recorded == (finals[0] if finals else None)
        assert (end.status is OrderStatus.SUCCESS) == (
            bool(finals) and isinstance(finals[0], Succeeded) and finals[0].amount == 500
        )


@given(outcomes, starts)
def test_a_repeat_changes_nothing(sequence: list[ChargeOutcome], start: OrderStatus) -> None:
    """An outcome that is applied twice in a row moves no order and no money the second time. A
    whole sequence that arrives again moves no money, and no order that is final.
    """
    charge = replace(CHARGE, status=start)
    for outcome in sequence:
        charge = apply(charge, outcome).snapshot
        again = apply(charge, outcome)
        assert (again.snapshot, again.order_outcome, again.unapplied) == (charge, None, None)
    for effect in effects(charge, sequence):
        assert effect.unapplied is None
        assert effect.order_outcome is None or charge.status not in TERMINAL_STATUSES


@given(outcomes, st.sampled_from([OrderStatus.SUCCESS, OrderStatus.FAILED]))
def test_a_final_charge_never_changes(sequence: list[ChargeOutcome], status: OrderStatus) -> None:
    """P2: nothing that a provider says changes an order that is final. Late money is unapplied."""
    recorded = PAID if status is OrderStatus.SUCCESS else None
    for effect in effects(replace(CHARGE, status=status, recorded=recorded), sequence):
        assert effect.order_outcome is None
        assert effect.snapshot.status is status
        if effect.unapplied is not None and effect.unapplied.amount == 500:
            assert effect.unapplied_cause is (
                UnappliedCause.DUPLICATE_CHARGE
                if status is OrderStatus.SUCCESS
                else UnappliedCause.LATE
            )


def test_words_that_contradict_need_an_operator() -> None:
    """Another amount of known money, and a decline after a success, move nothing and are reported.
    A success after a decline is unapplied money, which has an alert of its own.
    """
    paid = fold(CHARGE, [PAID])
    for outcome in (replace(PAID, amount=501), replace(PAID, currency="USD"), DECLINED):
        effect = apply(paid, outcome)
        assert effect.is_conflicting
        assert (effect.snapshot, effect.order_outcome, effect.unapplied) == (paid, None, None)
    late = apply(fold(CHARGE, [DECLINED]), PAID)
    assert (late.is_conflicting, late.unapplied, late.unapplied_cause) == (
        False,
        PAID,
        UnappliedCause.LATE,
    )


def test_an_order_before_its_risk_check_keeps_its_outcome() -> None:
    """An outcome of a charge that has not passed the risk check is recorded, and moves nothing: the
    orders follow it once they can.
    """
    waiting = replace(CHARGE, status=OrderStatus.NOT_STARTED)
    effect = apply(waiting, PAID)
    assert (effect.order_outcome, effect.unapplied) == (None, None)
    assert effect.snapshot == replace(waiting, recorded=PAID)
    started = replace(effect.snapshot, status=OrderStatus.EXECUTING)
    assert apply(started, Unknown("")).order_outcome == PAID
