"""The fold of a provider's words on a payout: permutations and repeats find one end state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.payout.payout_update import PayoutUpdate, apply
from tallystick_core.payout.reported_transfer import REQUESTED_MATCHES, TransferMatch
from tallystick_core.payout.snapshot import PayoutSnapshot
from tallystick_core.payout.state import TERMINAL_STATES, PayoutState
from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    NotSent,
    PayoutFailure,
    PayoutOutcome,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
)

DECLINED = Declined(PayoutFailure.PROVIDER_DECLINED, "no")
_NOT_FINAL: list[PayoutOutcome] = [
    Submitted("tr_1"),
    InTransit("tr_1"),
    NotSent("no connection"),
    Unknown("no answer"),
]
not_final_outcomes = st.sampled_from(_NOT_FINAL)
references = st.sampled_from(["tr_1", "tr_2"])
# What a reference names has one amount: a provider that changes its mind is another property.
money = st.one_of(
    references.map(lambda reference: Succeeded(reference, 900, "EUR")),
    references.map(lambda reference: Returned(reference, 900, "EUR")),
)
outcomes = st.lists(st.one_of(money, st.just(DECLINED), not_final_outcomes), max_size=7)
starts = st.sampled_from([PayoutState.SUBMITTING, PayoutState.SUBMITTED, PayoutState.IN_TRANSIT])


def started(state: PayoutState) -> PayoutUpdate:
    return PayoutUpdate(PayoutSnapshot(3, state, attempt_count=1), 900, "EUR")


def fold(payout: PayoutUpdate, sequence: Sequence[PayoutOutcome]) -> PayoutUpdate:
    return reduce(apply, sequence, payout)


def amounts(payout: PayoutUpdate) -> dict[str, tuple[int, int]]:
    """What moved and what was returned, by reference: the money that is booked."""
    return {
        reference: (transfer.amount, transfer.returned_amount or 0)
        for reference, transfer in payout.transfers.items()
    }


@given(starts, outcomes, st.randoms(use_true_random=False))
def test_all_money_is_booked_once_in_any_order(
    start: PayoutState, sequence: list[PayoutOutcome], random: object
) -> None:
    """O2: whatever arrives in whatever order, the transfers and their returns are what the provider
    reports, once for each reference, and the payout shows their sums.

    Only how a transfer matches depends on the order, and with it the state: the first of several
    transfers is the requested one, and a payout that has failed stays so, because its caller has
    seen it. At most one transfer is the requested one.
    """
    shuffled = list(sequence)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    moved = {outcome.reference for outcome in sequence if isinstance(outcome, Succeeded | Returned)}
    returned = {outcome.reference for outcome in sequence if isinstance(outcome, Returned)}
    expected = {
        reference: (900, 900 if reference in returned else 0) for reference in sorted(moved)
    }
    for order in (sequence, shuffled):
        end = fold(started(start), order)
        assert amounts(end) == expected
        assert end.snapshot.paid_amount == 900 * len(moved)
        assert end.snapshot.returned_amount == 900 * len(returned)
        matches = [transfer.match for transfer in end.transfers.values()]
        assert sum(match in REQUESTED_MATCHES for match in matches) == min(len(moved), 1)
        is_final = bool(moved) or DECLINED in order
        assert (end.snapshot.state in TERMINAL_STATES) == is_final


@given(
    st.data(),
    starts,
    st.lists(not_final_outcomes, max_size=4),
    st.sampled_from(
        [
            [Succeeded("tr_1", 900, "EUR")],
            [Succeeded("tr_1", 900, "EUR"), Returned("tr_1", 900, "EUR")],
            [DECLINED],
        ]
    ),
    st.sampled_from([1, 2]),
)
def test_words_that_agree_have_one_end_state_in_any_order(
    data: st.DataObject,
    start: PayoutState,
    others: list[PayoutOutcome],
    finals: list[PayoutOutcome],
    repeats: int,
) -> None:
    """While the final outcomes of a payout agree, its end state, its sums and its transfers are the
    same for every order of arrival, for repeats, and for words that are not final.
    """
    sequence = data.draw(st.permutations([*others, *finals * repeats]))
    end, plain = fold(started(start), sequence), fold(started(start), finals)
    assert end.transfers == plain.transfers
    assert (end.snapshot.state, end.snapshot.paid_amount, end.snapshot.returned_amount) == (
        plain.snapshot.state,
        plain.snapshot.paid_amount,
        plain.snapshot.returned_amount,
    )
    assert not end.conflicts


@given(starts, outcomes)
def test_a_repeat_changes_nothing(start: PayoutState, sequence: list[PayoutOutcome]) -> None:
    """An outcome that is applied twice in a row makes no version and moves no money the second
    time. After the end, a whole sequence that arrives again moves no money.
    """
    payout = started(start)
    for outcome in sequence:
        payout = apply(payout, outcome)
        again = apply(payout, outcome)
        assert (again.snapshot, again.transfers) == (payout.snapshot, payout.transfers)
    assert amounts(fold(payout, sequence)) == amounts(payout)


def test_conflicting_outcomes_need_an_operator() -> None:
    """A decline after the payment, and another amount of a known transfer, move nothing and are
    reported. A payment after the decline is booked as late money.
    """
    succeeded = Succeeded("tr_1", 900, "EUR")
    end = fold(started(PayoutState.SUBMITTING), [succeeded, DECLINED])
    assert (end.snapshot.state, end.conflicts) == (PayoutState.PAID, ("Declined no",))
    end = fold(started(PayoutState.SUBMITTING), [succeeded, Succeeded("tr_1", 901, "EUR")])
    assert (amounts(end), end.conflicts) == ({"tr_1": (900, 0)}, ("Succeeded tr_1 901 EUR",))
    end = fold(started(PayoutState.SUBMITTING), [DECLINED, succeeded])
    assert (end.snapshot.state, end.conflicts) == (PayoutState.FAILED, ())
    assert end.transfers["tr_1"].match is TransferMatch.AFTER_FAILURE
