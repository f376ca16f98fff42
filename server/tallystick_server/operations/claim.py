"""The claim of due operations."""

from __future__ import annotations

from collections.abc import Mapping

from tallystick_storage import operations as operation_store
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.sql import Connection

_MAX_CLAIMED = 200
"""Maximum operations of one provider in one claim."""


def claim_due(
    connection: Connection, limits: Mapping[str, int], lease_seconds: float
) -> tuple[dict[OperationKey, int], list[str]]:
    """Claims due operations and those with expired leases, up to a limit for each provider.

    Returns their lease tokens, and the providers that may have more due operations. If a provider
    is no longer configured, operations that need no provider call are claimed all the same.
    """
    tokens: dict[OperationKey, int] = {}
    full_providers = []
    for provider, limit in limits.items():
        count = max(min(_MAX_CLAIMED, limit), 0)
        leases = (
            operation_store.claim(connection, provider, count, lease_seconds) if count > 0 else {}
        )
        if len(leases) == count:
            full_providers.append(provider)
        tokens |= leases
    for provider in operation_store.list_providers(connection):
        if provider not in limits:
            tokens |= operation_store.claim(connection, provider, _MAX_CLAIMED, lease_seconds)
    return tokens, full_providers
