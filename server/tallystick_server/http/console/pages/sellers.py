"""Sellers: their wallets, statements, holds, payments and payouts."""

from __future__ import annotations

from typing import Any

from tallystick_server.http.console.acts import REASON, Act, ActPage
from tallystick_server.http.console.calls import gather_results
from tallystick_server.http.console.visit import Answer, Page, Visit

_FEW = 10


async def list_wallets(visit: Visit) -> Answer:
    """GET /console/sellers: wallets by seller and currency."""
    query = visit.query
    response = await visit.calls.call(
        "wallet.ListWallets",
        seller_account=query.get("seller", ""),
        currency=query.get("currency", ""),
        **visit.list_fields(),
    )
    return Page("wallets.html", "Wallets", {"response": response})


async def show_seller(visit: Visit) -> Answer:
    """GET /console/sellers/{seller_account}: its wallets, and the statement of one of them, which
    the query `currency` chooses.
    """
    seller = visit.variables["seller_account"]
    wallets = await visit.calls.attempt("wallet.ListWallets", seller_account=seller)
    currencies = [wallet["currency"] for wallet in wallets.values.get("wallets", [])]
    currency = visit.query.get("currency", "") or next(iter(currencies), "")
    of_seller: dict[str, Any] = {"seller_account": seller}
    of_wallet = {**of_seller, "currency": currency}
    attempt = visit.calls.attempt
    owner, payments, payouts, destinations = await gather_results(
        attempt("wallet.GetSeller", **of_seller),
        attempt("payment.ListPayments", **of_seller, page_size=_FEW),
        attempt("payout.ListPayouts", **of_seller, page_size=_FEW),
        attempt("payout.ListPayoutDestinations", **of_seller, page_size=_FEW),
    )
    wallet_parts = None
    if currency:
        wallet_parts = await gather_results(
            attempt("wallet.ListWalletEntries", **of_wallet, **visit.list_fields()),
            attempt("wallet.ListHolds", **of_wallet, page_size=_FEW),
            attempt("payout.GetPayoutSchedule", **of_wallet),
        )
    values = {
        "seller": seller,
        "wallets": wallets,
        "owner": owner,
        "payments": payments,
        "payouts": payouts,
        "destinations": destinations,
        "currency": currency,
        "currencies": currencies,
        "wallet_parts": wallet_parts,
        "acts": visit.allowed(ASSIGNMENT_ACTS.acts),
    }
    return Page("seller.html", f"Seller {seller}", values)


ASSIGNMENT_ACTS = ActPage(
    "sellers/{seller_account}/assignments/{seller_assignment_id}",
    show_seller,
    (
        Act(
            "approve",
            "Approve the assignment",
            "wallet.ApproveSellerAssignment",
            (REASON,),
            "The seller belongs to the new owner.",
        ),
        Act(
            "reject",
            "Reject the assignment",
            "wallet.RejectSellerAssignment",
            (REASON,),
            "The seller stays with its owner.",
            is_grave=True,
        ),
    ),
    page_path="sellers/{seller_account}",
)
"""The decision about another owner of a seller, which a second person makes."""
