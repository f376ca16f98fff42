"""Fingerprints of requests, in SQL. Fields are SQL expressions for texts."""

from __future__ import annotations


def canonical_sql(*fields: str) -> str:
    """SQL for the text that `fingerprint.encode_canonical` makes of the fields."""
    return " || ".join(f"octet_length({field}) || ':' || {field}" for field in fields)


def fingerprint_sql(*fields: str, suffix: str = "''") -> str:
    """SQL for the fingerprint of the fields. `suffix`: SQL for the canonical text of further
    fields.
    """
    return f"sha256(convert_to({canonical_sql(*fields)} || {suffix}, 'UTF8'))"


def wallet_entry_fingerprint_sql(
    source_id: str,
    seller: str,
    currency: str,
    amount: str,
    *,
    pending: str = "0",
    purpose: str = "",
) -> str:
    """SQL for the fingerprint of the instruction of a wallet entry. `pending` and `purpose` are
    plain values.
    """
    return fingerprint_sql(
        "t.kind", source_id, seller, currency, amount, f"'{pending}'", "'0'", f"'{purpose}'", "''"
    )
