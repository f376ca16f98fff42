"""The idempotency keys sent to providers."""

from __future__ import annotations


def format_provider_key(environment: str, operation_id: str, attempt: int) -> str:
    """The idempotency key sent to a provider: "{environment}-{operation_id}-{attempt}". The
    operation id is "o-{order}", "c-{checkout}" or "p-{payout}".
    """
    return f"{environment}-{operation_id}-{attempt}"
