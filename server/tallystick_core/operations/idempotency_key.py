"""The idempotency keys sent to providers."""

from __future__ import annotations

from tallystick_core.operations.kind import KindName

_PREFIXES = {KindName.CHARGE: "", KindName.PAYOUT: "p-"}
"""What precedes the id of an operation. A charge id begins with "o-" or "c-" already."""


def format_provider_key(environment: str, kind: KindName, operation_id: str, attempt: int) -> str:
    """The idempotency key sent to a provider: "{environment}-{charge_id}-{attempt}", or
    "{environment}-p-{payout_id}-{attempt}". It never changes: providers compare it.
    """
    return f"{environment}-{_PREFIXES[kind]}{operation_id}-{attempt}"
