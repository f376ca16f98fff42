"""Checks that payouts agree with their history, holds and transfers, and with wallet and ledger."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from tallystick_core.payout.reported_transfer import Transfer, TransferMatch, money_movements
from tallystick_core.payout.request import format_payout_hold_id
from tallystick_core.payout.state import (
    HOLD_CAPTURED,
    HOLD_OPEN,
    HOLD_RELEASED,
    TRANSITIONS,
    PayoutState,
    PayoutTransitionReason,
)
from tallystick_server.verify.report import (
    Check,
    QueryRunner,
    format_posting,
    merge_join,
    sum_counts,
    to_lists,
)

_TRANSITIONS = sorted(
    {f"{before} {after}" for (before, _), after in TRANSITIONS.items() if before != after}
)
_SAME_STATE_TRANSITIONS = [
    f"{PayoutTransitionReason.BOOKED} true",
    f"{PayoutTransitionReason.UNMATCHED_TRANSFER} false",
    f"{PayoutTransitionReason.ACKNOWLEDGED} true",
]
"""The reasons of versions that keep the state, and whether the payout is booked after them."""


def check_payouts(read: QueryRunner) -> Check:
    """Every payout's history is contiguous, follows the transition table, and ends in the payout's
    current state.
    """
    check = Check(
        "each payout matches its history",
        "P3 P4",
        sum_counts(read("payout.payout_count")),
    )
    check.fail_each(
        read(
            "payout.inconsistent_history",
            transitions=_TRANSITIONS,
            same_state_transitions=_SAME_STATE_TRANSITIONS,
        )
    )
    check.fail_each(read("payout.inconsistent_ends"))
    check.fail_each(read("payout.missing"))
    return check


def check_holds(read: QueryRunner) -> Check:
    """A payout that is to be sent or is in progress has an open hold of its amount. A paid one has
    a captured hold; any other has no open hold.
    """
    check = Check("each payout has the hold of its state", "O1")
    for key, payout, hold in merge_join(
        read("payout.payouts"),
        lambda row: row.payout_id,
        read("wallet.payout_holds"),
        lambda row: row.payout_id,
    ):
        check.count_row()
        name = f"wallet.hold {format_payout_hold_id(str(key))}"
        if payout is None:
            check.fail(name, "is a payout's, but there is no such payout")
        elif hold is not None and (hold.seller_account, hold.currency, hold.amount) != (
            payout.seller_account,
            payout.currency,
            payout.amount,
        ):
            check.fail(
                name,
                f"is not of {payout.amount} {payout.currency} of {payout.seller_account}, as its "
                "payout is",
            )
        elif not _has_expected_hold(payout, hold):
            check.fail(
                name,
                f"is {hold.state if hold is not None else 'missing'}, but its payout is "
                f"{payout.state}",
            )
    return check


def _has_expected_hold(payout: Any, hold: Any) -> bool:
    """Whether a payout has the required hold. A payout that is new, or is being booked, may have
    either.
    """
    state = hold.state if hold is not None else "NONE"
    if payout.state in HOLD_OPEN:
        return bool(state == "OPEN")
    if payout.booked and payout.state in HOLD_CAPTURED:
        return bool(state == "CAPTURED" and hold.captured_amount == payout.amount)
    if payout.booked and payout.state in HOLD_RELEASED:
        return state in ("NONE", "RELEASED")
    return True


def check_transfers(read: QueryRunner) -> Check:
    """A PAID or RETURNED payout has the exact transfer, and the database has at most one such
    transfer.
    """
    check = Check("each payout was paid once", "O2")
    transfers = groupby(read("payout.transfers"), key=lambda row: row.payout_id)
    for key, payout, rows in merge_join(
        read("payout.payouts"), lambda row: row.payout_id, to_lists(transfers), lambda pair: pair[0]
    ):
        check.count_row()
        transfer_rows = rows[1] if rows is not None else []
        if payout is None:
            check.fail(f"payout.transfer {key}", "is of no payout")
            continue
        name = f"payout.payout {key}"
        exact_transfers = [row for row in transfer_rows if row.match == TransferMatch.EXACT]
        if (payout.state in HOLD_CAPTURED) != bool(exact_transfers) and payout.version == max(
            (row.version for row in transfer_rows), default=payout.version
        ):
            check.fail(
                name,
                f"is {payout.state}, but {'a' if exact_transfers else 'no'} transfer was made as "
                "asked",
            )
        if payout.state == PayoutState.RETURNED and not any(
            row.returned_amount for row in exact_transfers
        ):
            check.fail(name, "is RETURNED, but has no returned transfer")
    return check


def check_money_movements(read: QueryRunner) -> Check:
    """Every movement for a payout is in wallet and ledger once, with the right kind, and there are
    no others.
    """
    check = Check("transfers and returns of payouts are posted", "P7")
    bookings = merge_join(
        read("ledger.payouts"),
        lambda row: row.wallet_source_id,
        read("wallet.payouts"),
        lambda row: row.source_id,
    )
    for source_id, movement, booking_pair in merge_join(
        read("payout.money_movements"),
        lambda row: row.wallet_source_id,
        bookings,
        lambda booking: booking[0],
    ):
        check.count_row()
        posting, entry = (
            (booking_pair[1], booking_pair[2]) if booking_pair is not None else (None, None)
        )
        if movement is None:
            check.fail(f"payout.transfer {source_id}", "is posted, but no provider reported it")
        else:
            _check_money_movement(check, source_id, movement, posting, entry)
    return check


def _check_money_movement(check: Check, source_id: str, row: Any, posting: Any, entry: Any) -> None:
    name = f"payout.transfer {source_id}"
    transfer = Transfer(
        row.provider_reference,
        row.amount,
        row.currency,
        TransferMatch(row.match),
        row.returned_amount,
        row.returned_currency,
    )
    movement = money_movements(
        row.payout_id, row.provider, row.seller_account, row.payout_amount, row.payout_fee, transfer
    )[row.is_return]
    if (row.booked or posting is not None) and (
        posting is None or posting.posting != format_posting(movement.lines, transfer.reference)
    ):
        check.fail(name, "its ledger transaction is not exactly one with its reference and entries")
    by_hold = transfer.match is TransferMatch.EXACT and not row.is_return
    expected = (
        (row.seller_account, row.payout_currency, movement.seller_change)
        if movement.seller_change and not by_hold
        else None
    )
    actual = (entry.seller_account, entry.currency, entry.amount) if entry is not None else None
    if (row.booked or entry is not None) and actual != expected:
        check.fail(name, f"its wallet entry is {actual}, and must be {expected}")


CHECKS = (check_payouts, check_holds, check_transfers, check_money_movements)
