"""All pages of the console by path."""

from __future__ import annotations

from collections.abc import Mapping

from tallystick_server.http.console.acts import ActPage
from tallystick_server.http.console.pages import (
    alerts,
    break_selection,
    breaks,
    dead_letter_selection,
    dead_letters,
    destinations,
    expected_entries,
    ledger,
    metrics,
    overview,
    payments,
    payouts,
    search,
    sellers,
    statements,
    traces,
    unapplied_charges,
)
from tallystick_server.http.console.visit import FormHandler, PageHandler

ACT_PAGES: tuple[ActPage, ...] = (
    payments.REPORT_ACTS,
    payouts.PAYOUT_ACTS,
    payouts.REPORT_ACTS,
    payouts.TRANSFER_ACTS,
    destinations.DESTINATION_ACTS,
    sellers.ASSIGNMENT_ACTS,
    *dead_letters.DEAD_LETTER_ACTS,
    unapplied_charges.UNAPPLIED_ACTS,
    breaks.BREAK_ACTS,
    statements.FILE_ACTS,
    expected_entries.ENTRY_ACTS,
)
PAGES: Mapping[str, PageHandler] = {
    "": overview.show_overview,
    "metrics": metrics.show_metrics,
    "traces": traces.list_traces,
    "traces/{trace_id}": traces.show_trace,
    "search": search.search,
    "payments": payments.list_payments,
    "payments/{checkout_id}": payments.show_payment,
    "orders/{payment_order_id}": payments.show_order,
    "charges/{charge_id}": payments.find_charge,
    "payouts": payouts.list_payouts,
    "approvals": payouts.list_approvals,
    "sellers": sellers.list_wallets,
    "sellers/{seller_account}": sellers.show_seller,
    "accounts": ledger.show_accounts,
    "transactions/{transaction_id}": ledger.show_transaction,
    "trial-balance": ledger.show_trial_balance,
    "dead-letters": dead_letters.list_dead_letters,
    **dead_letter_selection.MATCHING_PAGES,
    "unapplied-charges": unapplied_charges.list_unapplied_charges,
    "breaks": breaks.list_breaks,
    "alerts": alerts.list_alerts,
    "statement-files": statements.list_files,
    "clearing": statements.show_clearing_report,
    "expected-entries": expected_entries.list_expected_entries,
    **{page.path: page.page for page in ACT_PAGES if not page.page_path},
}
FORM_PAGES: Mapping[str, FormHandler] = {
    **dead_letter_selection.FORM_PAGES,
    **break_selection.FORM_PAGES,
}
"""What the forms about several items do, by path."""
