"""How much a seller can be paid, and what blocks the rest."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import MAX_AMOUNT
from tallystick_core.payout.destination import DestinationState
from tallystick_core.payout.quote import (
    DestinationReadiness,
    PayoutBlocker,
    PayoutTerms,
    WalletBalance,
    quote_amount,
    quote_payout,
)

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
        for limit, kept_amount in can.blocked_amounts.items()
        if list(PayoutBlocker).index(limit)
        >= list(PayoutBlocker).index(PayoutBlocker.MINIMUM_AMOUNT)
    }
    keeping = sum(
        can.blocked_amounts.get(limit, 0)
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
    assert can.blocked_amounts.get(PayoutBlocker.OWED, 0) == funds.owed
    assert list(can.blocked_amounts) == [
        limit for limit in PayoutBlocker if limit in can.blocked_amounts
    ]
    if can.amount:
        assert (
            terms.minimum_amount <= can.amount <= min(funds.available - terms.reserve, MAX_AMOUNT)
        )
        assert can.net_amount == can.amount - terms.fee > 0
        assert not funds.frozen
        assert destination == _USABLE_DESTINATION
    else:
        assert can.net_amount == 0
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
    assert dict(quote_payout(funds, terms, destination).blocked_amounts) == limits


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
        assert error.metadata["blockers"] == ",".join(can.blocked_amounts)
        nowhere = any(
            limit.endswith("DESTINATION") or limit.startswith("DESTINATION")
            for limit in can.blocked_amounts
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
