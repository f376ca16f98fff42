"""Clones events: one for each version of a clone, with the body of its template's event."""

from __future__ import annotations

from benchmarks.seed.clone import RowCloner
from benchmarks.seed.payments import ALERT_ID_SQL
from benchmarks.seed.templates import (
    DEAD_LETTER_ID,
    DESTINATION_ID,
    PAYMENT_TOKENS,
    PAYOUT_AMOUNTS,
    SELLER,
    template_id,
)


def clone_events(cloner: RowCloner, last_template_sequence: int) -> None:
    """Clones the events of all but batches and schedules, and moves the head of the stream.

    `last_template_sequence`: the last ledger transaction of the templates.
    """
    for kind in PAYMENT_TOKENS:
        _clone_payment_events(cloner, kind)
    dead_payments = "(select * from new_payment where kind = 'DEAD')"
    cloner.insert_events(
        f"deadLetters/{DEAD_LETTER_ID}",
        dead_payments,
        "'deadLetters/charges-' || s.charge_id || '-1'",
    )
    cloner.insert_events(
        f"alerts/payment-DEAD_LETTER-deadLetters-{DEAD_LETTER_ID}-1",
        dead_payments,
        f"'alerts/' || {ALERT_ID_SQL}",
    )
    clone_seller_events(cloner)
    for state in PAYOUT_AMOUNTS:
        cloner.insert_events(
            f"payouts/{template_id(state)}",
            f"(select * from new_payout where state = '{state}')",
            "'payouts/' || s.payout_id",
        )
    _clone_wallet_events(cloner)
    cloner.insert_events(
        "transactions/main-1",
        f"(select sequence from ledger.tx where sequence > {last_template_sequence})",
        "'transactions/main-' || s.sequence",
    )
    update_head(cloner)


def clone_seller_events(cloner: RowCloner) -> None:
    """Clones the events of sellers and their destinations. Needs the table `new_seller`."""
    cloner.insert_events(f"sellers/{SELLER}", "new_seller", "'sellers/' || s.seller")
    cloner.insert_events(
        f"payoutDestinations/{DESTINATION_ID}", "new_seller", "'payoutDestinations/d-' || s.seller"
    )


def update_head(cloner: RowCloner) -> None:
    """Moves the head of the stream to its last event."""
    cloner.connection.execute(
        "update event.head set cursor = (select max(cursor) from event.event)"
    )


def _clone_payment_events(cloner: RowCloner, kind: str) -> None:
    source_rows = f"(select * from new_payment where kind = '{kind}')"
    cloner.insert_events(
        f"payments/{template_id(kind)}", source_rows, "'payments/' || s.checkout_id"
    )
    cloner.insert_events(
        f"paymentOrders/{template_id(kind)}-o", source_rows, "'paymentOrders/' || s.order_id"
    )


def _clone_wallet_events(cloner: RowCloner) -> None:
    entries = (
        "(select seller_account, currency, number from wallet.wallet_entry where "
        "seller_account like 's-%')"
    )
    cloner.insert_events(
        f"wallets/{SELLER}/EUR",
        entries,
        "'wallets/' || s.seller_account || '/' || s.currency",
        version="s.number",
    )
