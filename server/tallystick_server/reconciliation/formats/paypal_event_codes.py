"""PayPal's event codes, and what a line with each is about."""

from __future__ import annotations

from tallystick_core.reconciliation.statement import LineType

LINE_TYPES = {
    "T00": LineType.CHARGE,
    "T01": LineType.FEE,
    "T02": LineType.CONVERSION,
    "T04": LineType.SETTLEMENT,
    "T08": LineType.ADJUSTMENT,
    "T09": LineType.ADJUSTMENT,
    "T1105": LineType.RESERVE,
    "T1106": LineType.DISPUTE,
    "T1107": LineType.REFUND,
    "T1108": LineType.FEE,
    "T1109": LineType.FEE,
    "T1110": LineType.RESERVE,
    "T1111": LineType.RESERVE,
    "T1114": LineType.PAYOUT_RETURN,
    "T1115": LineType.PAYOUT_RETURN,
    "T1201": LineType.DISPUTE,
    "T1205": LineType.DISPUTE_REVERSAL,
    "T12": LineType.ADJUSTMENT,
    "T15": LineType.RESERVE,
    "T19": LineType.ADJUSTMENT,
    "T20": LineType.TRANSFER,
    "T21": LineType.RESERVE,
    "T22": LineType.TRANSFER,
}
"""By the event code or its first three characters. A payment that was sent is PAYOUT if it is one
of a mass payment (T0001), else OTHER.
"""


def line_type_of(code: str, gross_amount: int) -> LineType:
    """The type of a line with this code. One that is not known is OTHER."""
    if code.startswith("T00") and gross_amount < 0:
        return LineType.PAYOUT if code == "T0001" else LineType.OTHER
    return LINE_TYPES.get(code) or LINE_TYPES.get(code[:3]) or LineType.OTHER
