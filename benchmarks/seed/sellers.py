"""Clones sellers: their wallets with the credits of payments, destinations and owners.

Needs the tables `new_seller` and `new_payment`.
"""

from __future__ import annotations

from benchmarks.seed.clone import CloneSource, RowCloner
from benchmarks.seed.fingerprints import fingerprint_sql, wallet_entry_fingerprint_sql
from benchmarks.seed.source_tables import NET_AMOUNT
from benchmarks.seed.templates import DESTINATION_ID, SELLER, template_id

_SELLER_FILTER = f"t.seller_account = '{SELLER}'"
_SOURCE = CloneSource("new_seller")


def clone_sellers(cloner: RowCloner) -> None:
    _clone_wallets(cloner)
    clone_destinations(cloner)
    clone_owners(cloner)


def clone_owners(cloner: RowCloner) -> None:
    """Clones which owner a seller belongs to. Needs the table `new_seller`."""
    for table in ("wallet.seller", "payment.seller_owner"):
        cloner.insert_rows(
            table,
            _SELLER_FILTER,
            _SOURCE,
            seller_account="s.seller",
            update_time="s.start_time",
        )


def _clone_wallets(cloner: RowCloner) -> None:
    """Wallets with one available credit for each PAID payment, as they are before any payout."""
    cloner.insert_rows(
        "wallet.wallet",
        _SELLER_FILTER,
        _SOURCE,
        seller_account="s.seller",
        version="s.paid_payments",
        pending="0",
        held="0",
        owed="0",
        available=f"{NET_AMOUNT} * s.paid_payments",
        balance=f"{NET_AMOUNT} * s.paid_payments",
        policy_version="0",
        update_time="s.start_time",
    )
    source_id = "'PAY_IN/' || s.order_id"
    cloner.insert_rows(
        "wallet.wallet_entry",
        f"t.kind = 'CREDIT' and t.source_id = 'PAY_IN/{template_id('PAID')}-o'",
        CloneSource("(select * from new_payment where kind = 'PAID' order by number)"),
        seller_account="s.seller",
        number="s.paid_number",
        source_id=source_id,
        available_after=f"{NET_AMOUNT} * s.paid_number",
        create_time="s.start_time",
        fingerprint=wallet_entry_fingerprint_sql(
            source_id, "s.seller", "t.currency", "t.amount::text", pending="1"
        ),
    )


def clone_destinations(cloner: RowCloner) -> None:
    """Clones a verified destination, usable at once, for each seller. Needs the table
    `new_seller`.
    """
    cloner.insert_rows(
        "payout.payout_destination",
        f"t.payout_destination_id = '{DESTINATION_ID}'",
        _SOURCE,
        payout_destination_id="'d-' || s.seller",
        seller_account="s.seller",
        create_time="s.start_time",
        update_time="s.start_time",
        usable_time="s.start_time",
        verified_time="s.start_time",
        fingerprint=fingerprint_sql(
            "'d-' || s.seller",
            "t.owner",
            "s.seller",
            "t.currency",
            "t.bank_account_token",
            "t.description",
        ),
    )
