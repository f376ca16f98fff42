"""Adyen's settlement details report, a CSV file.

There is one statement for each merchant account and net currency of the file. A line's
`settlement_reference` is the number of its batch. The payout of a batch to the bank is a row of its
own, `MerchantPayout`, so the lines of a closed batch add up to 0. The file has no totals; a batch
that does not add up to 0 may still be open, and is no damage.

The time zone of a file is an abbreviation such as CET, which does not show summer time. So lines
have the date as the file has it, and a time only if the zone is UTC.
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
    "Merchant Account",
    "Psp Reference",
    "Merchant Reference",
    "Creation Date",
    "TimeZone",
    "Type",
    "Modification Reference",
    "Gross Currency",
    "Gross Debit (GC)",
    "Gross Credit (GC)",
    "Net Currency",
    "Net Debit (NC)",
    "Net Credit (NC)",
    "Batch Number",
)
COST_COLUMNS = (
    "Commission (NC)",
    "Markup (NC)",
    "Scheme Fees (NC)",
    "Interchange (NC)",
    "Payment Fees (NC)",
)
_COLUMNS = Columns(
    REQUIRED_COLUMNS,
    frozenset(
        (
            *COST_COLUMNS,
            "Acquirer",
            "Advancement Batch",
            "Advancement Code",
            "Booking Date",
            "Booking Date TimeZone",
            "Booking Type",
            "Company Account",
            "DCC Markup (NC)",
            "Exchange Rate",
            "Global Card Brand",
            "Interaction",
            "Issuer Country",
            "Merchant Order Reference",
            "Modification Merchant Reference",
            "Payment Method",
            "Payment Method Variant",
            "Shopper Country",
            "Shopper Interaction",
            "Split Settlement",
            "Store",
            "Store Terminal",
            "Surcharge Amount",
            "Terminal ID",
        )
    ),
    re.compile(r"Reserved\d{1,2}|Metadata\[[^\[\]]{1,80}\]"),
)
LINE_TYPES = {
    "settled": LineType.CHARGE,
    "settledbulk": LineType.CHARGE,
    "settledinstallment": LineType.CHARGE,
    "refunded": LineType.REFUND,
    "refundedbulk": LineType.REFUND,
    "refundedreversed": LineType.REFUND_FAILURE,
    "chargeback": LineType.DISPUTE,
    "secondchargeback": LineType.DISPUTE,
    "chargebackreversed": LineType.DISPUTE_REVERSAL,
    "fee": LineType.FEE,
    "misccosts": LineType.FEE,
    "paymentcost": LineType.FEE,
    "invoicededuction": LineType.FEE,
    "manualcorrected": LineType.ADJUSTMENT,
    "depositcorrection": LineType.RESERVE,
    "balancetransfer": LineType.TRANSFER,
    "merchantpayout": LineType.SETTLEMENT,
    "bankinstructionreturned": LineType.SETTLEMENT_FAILURE,
    "paidout": LineType.PAYOUT,
    "bppaidout": LineType.PAYOUT,
    "paidoutreversed": LineType.PAYOUT_RETURN,
}
"""By `Type`, in small letters: Adyen writes some in two ways."""


def matches(head: bytes) -> bool:
    """Whether a file with this head looks like this format."""
    return names_columns(head, "Psp Reference", "Net Credit (NC)")


def read(file: TextFile) -> Iterator[StatementItem]:
    """The statements of a report. Raises DamagedFile."""
    return read_groups(CsvTable(file, _COLUMNS), _group, _line)


def _group(row: Row) -> Group:
    return Group(row.required_text("Merchant Account"), row.currency("Net Currency"))


def _line(row: Row) -> StatementLine:
    code = row.required_text("Type")
    line_type = LINE_TYPES.get(code.lower(), LineType.OTHER)
    currency = row.currency("Net Currency")
    net = _signed_amount(row, "Net Debit (NC)", "Net Credit (NC)", currency)
    original_amount, original_currency, fee = _conversion_and_fee(row, net, currency)
    created = row.time("Creation Date")
    booked = row.time("Booking Date") if row.has("Booking Date") else created
    zone = "Booking Date TimeZone" if row.has("Booking Date") else "TimeZone"
    own_reference = row.text("Merchant Reference")
    if line_type is not LineType.CHARGE and row.has("Modification Merchant Reference"):
        own_reference = row.text("Modification Merchant Reference")
    return StatementLine(
        line_number=row.line_number,
        line_type=line_type,
        code=code,
        amount=net,
        currency=currency,
        fee=fee,
        booking_date=booked.date(),
        booking_time=booked if row.raw(zone) == "UTC" else None,
        reference=row.text("Modification Reference") or row.text("Psp Reference"),
        charge_reference=row.text("Psp Reference"),
        client_reference=own_reference,
        settlement_reference=row.text("Batch Number"),
        original_amount=original_amount,
        original_currency=original_currency,
        text=row.raw("Modification Reference")[:MAX_TEXT_LENGTH],
    )


def _signed_amount(row: Row, debit_column: str, credit_column: str, currency: str) -> int:
    debit = row.unsigned_amount(debit_column, currency)
    credit = row.unsigned_amount(credit_column, currency)
    if debit and credit:
        row.fail(credit_column, f"must be empty if there is a {debit_column}")
    if not (row.has(debit_column) or row.has(credit_column)):
        row.fail(credit_column, f"or {debit_column} must have an amount")
    return credit - debit


def _conversion_and_fee(row: Row, net: int, currency: str) -> tuple[int | None, str, int]:
    """The amount before a conversion, its currency, and the fee in the net currency. Without a
    conversion the fee is gross minus net; with one, only the columns of costs know it.
    """
    if not (row.has("Gross Debit (GC)") or row.has("Gross Credit (GC)")):
        return None, "", 0
    gross_currency = row.currency("Gross Currency")
    gross = _signed_amount(row, "Gross Debit (GC)", "Gross Credit (GC)", gross_currency)
    if gross_currency == currency:
        return None, "", gross - net
    costs = sum(row.amount(name, currency) for name in COST_COLUMNS if row.has(name))
    return gross, gross_currency, costs
