"""Stripe's itemized payout reconciliation report, `payout_reconciliation.itemized.N` and
`payout_reconciliation.by_id.itemized.N`.

There is one statement for each currency of the file: what moved the platform's balance at Stripe.
Stripe pays the sum of many lines to the bank at once, so each line names its automatic payout as
`settlement_reference`. The payout itself is no row of the report: reconciliation compares the sum
of the lines of a settlement with the payout at Stripe and with one line of the bank. A file has
neither totals nor balances; whether all its rows are there, only that comparison shows.

Times without a zone are those of the columns that end in `_utc`. Those of the report's own zone
are not read, because the file does not name the zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tallystick_core.reconciliation.statement import (
    MAX_TEXT_LENGTH,
    LineType,
    StatementItem,
    StatementLine,
)
from tallystick_server.reconciliation.formats.csv_table import (
    Columns,
    CsvTable,
    Group,
    Row,
    names_columns,
    read_groups,
)
from tallystick_server.reconciliation.formats.text_file import TextFile

REQUIRED_COLUMNS = (
    "automatic_payout_id",
    "balance_transaction_id",
    "created_utc",
    "reporting_category",
    "gross",
    "fee",
    "net",
    "currency",
)
_CLIENT_REFERENCES = (
    "payment_metadata[charge_id]",
    "refund_metadata[refund_id]",
    "transfer_metadata[payout_id]",
    "payment_metadata[key]",
    "refund_metadata[key]",
    "transfer_metadata[key]",
)
"""The ids that the platform gave to Stripe: of the object, else of the call."""
_CHARGES = ("payment_intent_id", "transfer_id", "charge_id")
"""What the platform charged or paid: the id that the ledger has, if the report has it."""
_COLUMNS = Columns(
    REQUIRED_COLUMNS,
    frozenset(
        (
            "automatic_payout_effective_at",
            "automatic_payout_effective_at_utc",
            "available_on",
            "available_on_utc",
            "card_brand",
            "card_country",
            "card_funding",
            "charge_created",
            "charge_created_utc",
            "charge_id",
            "connected_account",
            "connected_account_country",
            "connected_account_direct_charge_id",
            "connected_account_name",
            "created",
            "description",
            "destination_payment_id",
            "dispute_reason",
            "invoice_id",
            "invoice_number",
            "is_link",
            "order_id",
            "payment_intent_id",
            "payment_method_type",
            "refund_id",
            "regulatory_tag",
            "source_id",
            "statement_descriptor",
            "subscription_id",
            "trace_id",
            "transfer_group",
            "transfer_id",
        )
    ),
    re.compile(r"customer_[a-z0-9_]+|(payment|refund|transfer)_metadata\[[^\[\]]{1,40}\]"),
)
LINE_TYPES = {
    "charge": LineType.CHARGE,
    "charge_failure": LineType.REFUND,
    "partial_capture_reversal": LineType.REFUND,
    "refund": LineType.REFUND,
    "refund_failure": LineType.REFUND_FAILURE,
    "dispute": LineType.DISPUTE,
    "dispute_reversal": LineType.DISPUTE_REVERSAL,
    "fee": LineType.FEE,
    "network_cost": LineType.FEE,
    "tax": LineType.FEE,
    "other_adjustment": LineType.ADJUSTMENT,
    "connect_reserved_funds": LineType.RESERVE,
    "risk_reserved_funds": LineType.RESERVE,
    "payout_minimum_balance_hold": LineType.RESERVE,
    "payout_minimum_balance_release": LineType.RESERVE,
    "connect_collection_transfer": LineType.TRANSFER,
    "topup": LineType.TRANSFER,
    "topup_reversal": LineType.TRANSFER,
    "transfer": LineType.PAYOUT,
    "transfer_reversal": LineType.PAYOUT_RETURN,
    "payout": LineType.SETTLEMENT,
    "payout_reversal": LineType.SETTLEMENT_FAILURE,
}
"""By `reporting_category`. The platform pays a seller by a transfer to their account at Stripe."""


def matches(head: bytes) -> bool:
    """Whether a file with this head looks like this format."""
    return names_columns(head, "automatic_payout_id", "reporting_category")


def read(file: TextFile) -> Iterator[StatementItem]:
    """The statements of a report. Raises DamagedFile."""
    return read_groups(CsvTable(file, _COLUMNS), _group, _line)


def _group(row: Row) -> Group:
    return Group("", row.currency("currency"))


def _line(row: Row) -> StatementLine:
    currency = row.currency("currency")
    net = row.amount("net", currency)
    fee = row.amount("fee", currency)
    if row.amount("gross", currency) - fee != net:
        row.fail("net", "must be gross minus fee")
    category = row.required_text("reporting_category")
    created = row.time("created_utc")
    return StatementLine(
        line_number=row.line_number,
        line_type=LINE_TYPES.get(category, LineType.OTHER),
        code=category,
        amount=net,
        currency=currency,
        fee=fee,
        booking_date=created.date(),
        value_date=(row.time("available_on_utc").date() if row.has("available_on_utc") else None),
        booking_time=created,
        reference=row.required_text("balance_transaction_id"),
        charge_reference=next((row.text(name) for name in _CHARGES if row.has(name)), ""),
        client_reference=next((row.text(name) for name in _CLIENT_REFERENCES if row.has(name)), ""),
        settlement_reference=row.required_text("automatic_payout_id"),
        text=row.raw("description")[:MAX_TEXT_LENGTH],
    )
