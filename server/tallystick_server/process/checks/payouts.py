"""Payouts hang together: with their history, their holds, their transfers, and what wallet and ledger were told."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from tallystick_core.payout import CAPTURED, GIVEN_BACK, HELD, MOVES, Cause, PayoutState, payout_hold_id
from tallystick_core.transfer import Fit, Transfer, facts
from tallystick_server.process.checks.report import Check, Read, counted, listed, merged, text_of

_MOVES = sorted({f"{before} {after}" for (before, _), after in MOVES.items() if before != after})
_STAYED = [f"{Cause.SETTLED} true", f"{Cause.STRAY_TRANSFER} false", f"{Cause.ACKNOWLEDGED} true"]
"""The causes of versions that leave the state as it is, and whether the payout is settled after them."""


def check_payouts(read: Read) -> Check:
    """Every payout's history is contiguous, moves along the table, and ends in what the payout is."""
    check = Check("each payout's history leads to what it is", "P3 P4", counted(read("payout.payout_count")))
    check.fail_each(read("payout.wrong_history", moves=_MOVES, stayed=_STAYED))
    check.fail_each(read("payout.wrong_ends"))
    check.fail_each(read("payout.missing"))
    return check


def check_holds(read: Read) -> Check:
    """A payout that is to be sent, or is on its way, has an open hold of its amount, a paid one a captured one, any other none that is open."""
    check = Check("each payout has the hold that its state says", "O1")
    for key, payout, hold in merged(read("payout.payouts"), lambda row: row.payout_id, read("wallet.payout_holds"), lambda row: row.payout_id):
        check.row()
        name = f"wallet.hold {payout_hold_id(str(key))}"
        if payout is None:
            check.fail(name, "is a payout's, but there is no such payout")
        elif hold is not None and (hold.seller_account, hold.currency, hold.amount) != (payout.seller_account, payout.currency, payout.amount):
            check.fail(name, f"is not of {payout.amount} {payout.currency} of {payout.seller_account}, as its payout is")
        elif not _holds(payout, hold):
            check.fail(name, f"is {hold.state if hold is not None else 'missing'}, but its payout is {payout.state}")
    return check


def _holds(payout: Any, hold: Any) -> bool:
    """Whether a payout has the hold that it must have; one that is being settled, or is new, may have either."""
    state = hold.state if hold is not None else "NONE"
    if payout.state in HELD:
        return bool(state == "OPEN")
    if payout.settled and payout.state in CAPTURED:
        return bool(state == "CAPTURED" and hold.captured_amount == payout.amount)
    if payout.settled and payout.state in GIVEN_BACK:
        return state in ("NONE", "RELEASED")
    return True


def check_transfers(read: Read) -> Check:
    """A payout is PAID, or RETURNED, by the transfer that was made as asked, of which the database has at most one."""
    check = Check("each payout was paid once", "O2")
    transfers = groupby(read("payout.transfers"), key=lambda row: row.payout_id)
    for key, payout, rows in merged(read("payout.payouts"), lambda row: row.payout_id, listed(transfers), lambda pair: pair[0]):
        check.row()
        known = rows[1] if rows is not None else []
        if payout is None:
            check.fail(f"payout.transfer {key}", "is of no payout")
            continue
        name = f"payout.payout {key}"
        as_asked = [row for row in known if row.fit == Fit.AS_ASKED]
        if (payout.state in CAPTURED) != bool(as_asked) and payout.version == max((row.version for row in known), default=payout.version):
            check.fail(name, f"is {payout.state}, but {'a' if as_asked else 'no'} transfer was made as asked")
        if payout.state == PayoutState.RETURNED and not any(row.returned_amount for row in as_asked):
            check.fail(name, "is RETURNED, but nothing came back")
    return check


def check_facts(read: Read) -> Check:
    """Money that moved for a payout is in wallet and ledger once, as what it is; nothing else is."""
    check = Check("what moved for payouts is posted as it was", "P7")
    told = merged(read("ledger.payouts"), lambda row: row.cause, read("wallet.payouts"), lambda row: row.cause)
    for cause, fact, booked in merged(read("payout.facts"), lambda row: row.cause, told, lambda one: one[0]):
        check.row()
        posted, entry = (booked[1], booked[2]) if booked is not None else (None, None)
        if fact is None:
            check.fail(f"payout.transfer {cause}", "is posted, but no provider told of it")
        else:
            _check_fact(check, cause, fact, posted, entry)
    return check


def _check_fact(check: Check, cause: str, row: Any, posted: Any, entry: Any) -> None:
    name = f"payout.transfer {cause}"
    transfer = Transfer(row.provider_reference, row.amount, row.currency, Fit(row.fit), row.returned_amount, row.returned_currency)
    fact = facts(row.payout_id, row.provider, row.seller_account, row.payout_amount, row.payout_fee, transfer)[row.is_return]
    if (row.settled or posted is not None) and (posted is None or posted.lines != text_of(fact.lines)):
        check.fail(name, "its ledger transaction is not exactly one with its entries")
    by_hold = transfer.fit is Fit.AS_ASKED and not row.is_return
    wanted = (row.seller_account, row.payout_currency, fact.seller_change) if fact.seller_change and not by_hold else None
    found = (entry.seller_account, entry.currency, entry.amount) if entry is not None else None
    if (row.settled or entry is not None) and found != wanted:
        check.fail(name, f"its wallet entry is {found}, and must be {wanted}")
