"""Wallets are what their entries made of them, and agree with the ledger."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

from tallystick_core.payment import Status
from tallystick_core.wallet import EntryKind
from tallystick_server.process.checks.report import Check, Read, merged


def check_wallets(read: Read) -> Check:
    """Every wallet is what its entries made of it, holds the sum of its open holds, and waits for the sum of its pending credits."""
    check = Check("each wallet is what its entries made of it", "W2 W3 P4")
    held = {(row.seller_account, row.currency): int(row.held) for row in read("wallet.holds")}
    pending = _pending(check, read)
    entries = groupby(read("wallet.entries"), key=lambda row: (row.seller_account, row.currency))
    for key, wallet, grouped in merged(read("wallet.wallets"), lambda row: (row.seller_account, row.currency), entries, lambda pair: pair[0]):
        check.row()
        name = f"wallet.wallet {key[0]} {key[1]}"
        if wallet is None:
            check.fail(name, "has entries and no wallet")
            continue
        last = _check_entries(check, key, list(grouped[1]) if grouped is not None else [])
        parts = (int(wallet.pending), int(wallet.available), int(wallet.held), int(wallet.owed))
        if last != (wallet.version, *parts):
            check.fail(name, f"is at version {wallet.version} with {parts}, but its last entry says {last}")
        if min(parts) < 0 or (parts[3] and parts[1]) or int(wallet.balance) != sum(parts[:3]) - parts[3]:
            check.fail(name, "balance is not pending + available + held - owed, or a part is wrong")
        if parts[2] != held.get(key, 0):
            check.fail(name, f"holds {parts[2]}, but its open holds sum to {held.get(key, 0)}")
        if parts[0] != pending[key]:
            check.fail(name, f"has {parts[0]} pending, but its pending credits sum to {pending[key]}")
    return check


def _pending(check: Check, read: Read) -> Counter[tuple[str, str]]:
    """What each wallet's pending credits sum to."""
    pending: Counter[tuple[str, str]] = Counter()
    for row in read("wallet.pending"):
        pending[row.seller_account, row.currency] += row.amount
        if row.credited != row.amount or row.released:
            check.fail(f"wallet.pending_credit {row.cause}", "is pending, but it was released" if row.released else "is not what was credited")
        elif row.overdue:
            check.fail(f"wallet.pending_credit {row.cause}", "is pending, though its time came long ago")
    return pending


_SIGN = {EntryKind.CREDIT: 1, EntryKind.DEBIT: -1, EntryKind.HOLD_CAPTURED: -1}


def _check_entries(check: Check, key: tuple[str, str], entries: list[Any]) -> tuple[int, int, int, int, int]:
    """Checks that numbers have no gap and each entry moves the balance by its amount; returns the last version and parts."""
    last, balance = (0, 0, 0, 0, 0), 0
    for row in entries:
        name = f"wallet.wallet_entry {key[0]} {key[1]} {row.number}"
        if row.number != last[0] + 1:
            check.fail(name, f"follows {last[0]}, with a gap")
        parts = (int(row.pending_after), int(row.available_after), int(row.held_after), int(row.owed_after))
        moved = sum(parts[:3]) - parts[3] - balance
        if moved != _SIGN.get(row.kind, 0) * row.amount:
            check.fail(name, f"moves the balance by {moved}, which is not its {row.kind} of {row.amount}")
        balance += moved
        last = (row.number, *parts)
    return last


def check_wallets_against_ledger(read: Read) -> Check:
    """A seller's wallet and ledger account agree, but for orders and payouts that are being settled at this moment."""
    check = Check("wallets agree with the ledger", "W1")
    in_flight = {(o.seller_account, o.currency) for o in read("payment.orders") if o.status == Status.SUCCESS and not o.ledger_updated}
    in_flight |= {(row.seller_account, row.currency) for row in read("payout.in_flight")}

    def by_seller(row: Any) -> tuple[str, str]:
        return (row.seller_account, row.currency)

    for key, wallet, account in merged(read("wallet.wallets"), by_seller, read("ledger.sellers"), by_seller):
        check.row()
        in_wallet = int(wallet.balance) if wallet is not None else 0
        in_ledger = int(account.balance) if account is not None else 0
        if in_wallet != in_ledger and key not in in_flight:
            check.fail(f"wallet.wallet {key[0]} {key[1]}", f"balance is {in_wallet}, but sellers/{key[0]} in the ledger has {in_ledger}")
    return check
