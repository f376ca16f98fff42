"""What is booked for an order or a payout is compared with what should be."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.reconciliation.bookings import Booking, WalletKey, find_differences

_KEYS = st.builds(WalletKey, st.sampled_from(["s-1", "s-2"]), st.sampled_from(["EUR", "JPY"]))
_AMOUNTS = st.dictionaries(_KEYS, st.integers(-3, 3).filter(bool))
_S_1 = WalletKey("s-1", "EUR")


@given(_AMOUNTS, _AMOUNTS, st.none() | _AMOUNTS)
def test_exactly_what_is_not_equal_differs(
    expected: Mapping[WalletKey, int],
    in_wallet: Mapping[WalletKey, int],
    in_ledger: Mapping[WalletKey, int] | None,
) -> None:
    """A seller and currency is found if one of the amounts is another one, and never twice; the
    amount of a difference is not zero.
    """
    found = list(find_differences(Booking(expected, in_wallet, in_ledger)))
    sides = [expected, in_wallet, *([] if in_ledger is None else [in_ledger])]
    keys = {key for side in sides for key in side}
    assert [item.key for item in found] == sorted(
        key for key in keys if len({side.get(key, 0) for side in sides}) > 1
    )
    assert all(item.amount for item in found)


def test_the_amount_is_what_the_wallet_has_too_much() -> None:
    """Or else the ledger; below zero: too little."""
    ((wallet,), (ledger,), (hold,)) = (
        list(find_differences(booking))
        for booking in (
            Booking({_S_1: 9}, {_S_1: 7}, {_S_1: 8}),
            Booking({_S_1: 9}, {_S_1: 9}, {_S_1: 8}),
            Booking({}, {_S_1: 5}),
        )
    )
    assert (wallet.amount, ledger.amount, hold.amount) == (-2, -1, 5)
