"""Checks that wallets match their entries and agree with the ledger."""

from __future__ import annotations

import heapq
from itertools import groupby
from typing import Any

from tallystick_server.verify.report import Check, QueryRunner, merge_join, sum_counts


def check_wallets(read: QueryRunner) -> Check:
    """Every wallet matches its entries, the sum of its open holds, and the sum of its pending
    credits.
    """
    check = Check(
        "each wallet matches its entries",
        "W2 W3 P4",
        sum_counts(read("wallet.wallet_count")),
    )
    for name in (
        "wallet.inconsistent_pending",
        "wallet.inconsistent_entries",
        "wallet.inconsistent_wallets",
        "wallet.missing",
    ):
        check.fail_each(read(name))
    return check


def check_wallets_against_ledger(read: QueryRunner) -> Check:
    """A seller's wallet and ledger account agree, except for orders and payouts that are being
    booked now.
    """
    check = Check("wallets agree with the ledger", "W1")

    def by_seller(row: Any) -> tuple[str, str]:
        return (row.seller_account, row.currency)

    in_flight = groupby(
        heapq.merge(read("payment.in_flight"), read("payout.in_flight"), key=by_seller),
        key=by_seller,
    )
    balance_pairs = merge_join(
        read("wallet.balances"), by_seller, read("ledger.sellers"), by_seller
    )
    for key, pair, in_flight_group in merge_join(
        balance_pairs, lambda item: item[0], in_flight, lambda item: item[0]
    ):
        if pair is None:
            continue
        check.count_row()
        _, wallet, account = pair
        in_wallet = int(wallet.balance) if wallet is not None else 0
        in_ledger = int(account.balance) if account is not None else 0
        if in_wallet != in_ledger and in_flight_group is None:
            check.fail(
                f"wallet.wallet {key[0]} {key[1]}",
                f"balance is {in_wallet}, but sellers/{key[0]} in the ledger has {in_ledger}",
            )
    return check


CHECKS = (check_wallets, check_wallets_against_ledger)
