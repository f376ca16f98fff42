"""The claim of due operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tallystick_storage import operations as operation_store
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.sql import Connection

_MAX_CLAIMED = 200
"""Maximum operations of one provider in one claim."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The operations that were claimed.

    `tokens`: the lease tokens. `full_providers`: the providers that may have more
    due operations. `lost_lease_count`: how many had an expired lease of another holder.
    """

    tokens: dict[OperationKey, int]
    full_providers: Sequence[str]
    lost_lease_count: int


def claim_due(connection: Connection, limits: Mapping[str, int], lease_seconds: float) -> Claim:
    """Claims due operations and those with expired leases, up to a limit for each provider.

    If a provider is no longer configured, operations that need no provider call are claimed all the
    same.
    """
    leases: list[operation_store.ClaimedLease] = []
    full_providers = []
    for provider, limit in limits.items():
        count = max(min(_MAX_CLAIMED, limit), 0)
        claimed = (
            operation_store.claim(connection, provider, count, lease_seconds) if count > 0 else ()
        )
        if len(claimed) == count:
            full_providers.append(provider)
        leases += claimed
    for provider in operation_store.list_providers(connection):
        if provider not in limits:
            leases += operation_store.claim(connection, provider, _MAX_CLAIMED, lease_seconds)
    return Claim(
        {lease.key: lease.lease_token for lease in leases},
        full_providers,
        sum(lease.was_leased for lease in leases),
    )
