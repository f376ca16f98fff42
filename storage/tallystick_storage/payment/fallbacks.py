"""Fallbacks: the next attempts of charges, at other providers, if the last was certainly not sent.

Locks, as everywhere: attempts, then operations; the orders follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, text


@dataclass(frozen=True, slots=True)
class LeasedAttempt:
    """The last attempt of a charge, as the holder of a lease has it."""

    charge_id: str
    attempt_number: int
    lease_token: int


@dataclass(frozen=True, slots=True)
class FallbackAttempt(LeasedAttempt):
    """The attempt that replaces a locked one; the number and the token are those of the old one."""

    provider: str
    provider_key: str
    routing_rule: str
    routing_reason: str


_LOCK_ATTEMPTS = text("""
    select a.operation_id
    from json_to_recordset(cast(:attempts as json))
        as r (charge_id text collate "C", attempt_number int)
    join attempt a on a.kind = 'charge' and a.operation_id = r.charge_id
        and a.attempt_number = r.attempt_number
    where a.end_time is null and a.outcome in ('', 'NOT_SENT')
    order by a.operation_id for update of a
""")
_LOCK_OPERATIONS = text("""
    select op.operation_id
    from json_to_recordset(cast(:attempts as json))
        as r (charge_id text collate "C", lease_token bigint)
    join operation op on op.kind = 'charge' and op.operation_id = r.charge_id
        and op.lease_token = r.lease_token
    where not op.maybe_sent and not op.has_changed
    order by op.operation_id for update of op
""")
_END_ATTEMPTS = text("""
    update attempt a set outcome = 'NOT_SENT', end_time = clock()
    from json_to_recordset(cast(:attempts as json))
        as r (charge_id text collate "C", attempt_number int)
    where a.kind = 'charge' and a.operation_id = r.charge_id
        and a.attempt_number = r.attempt_number
""")
_INSERT_ATTEMPTS = text("""
    insert into attempt (kind, operation_id, attempt_number, checkout_id, provider,
        provider_key, amount, currency, outcome, provider_reference, failure_reason,
        decline_code, routing_rule, routing_reason, fallback_provider, start_time)
    select 'charge', a.operation_id, a.attempt_number + 1, a.checkout_id, r.provider,
        r.provider_key, a.amount, a.currency, '', '', '', '', r.routing_rule, r.routing_reason,
        '', clock()
    from json_to_recordset(cast(:attempts as json))
        as r (charge_id text collate "C", attempt_number int, provider text, provider_key text,
            routing_rule text, routing_reason text)
    join attempt a on a.kind = 'charge' and a.operation_id = r.charge_id
        and a.attempt_number = r.attempt_number
    order by a.operation_id
""")
_LEASE_OPERATIONS = text("""
    update operation op set provider = r.provider, next_try_time = clock(),
        lease_until = clock() + cast(:lease as interval), lease_token = op.lease_token + 1,
        is_leased = true, lookup_only = false, retry_counts = '{}', not_found_count = 0,
        retry_reason = '', detail = '', phase_start_time = clock()
    from json_to_recordset(cast(:attempts as json))
        as r (charge_id text collate "C", provider text)
    where op.kind = 'charge' and op.operation_id = r.charge_id
""")


def lock_unsent(connection: Connection, attempts: Sequence[LeasedAttempt]) -> set[str]:
    """Locks the charges whose attempt is certainly not sent, and never will be by another holder:
    it has no outcome but NOT_SENT, no other process has taken the lease, and no holder of a lease
    may have sent it. Nor has a cancellation changed the charge. Returns their ids.
    """
    open_ids = set(
        connection.execute(_LOCK_ATTEMPTS, {"attempts": encode_rows(attempts)}).scalars()
    )
    candidates = [attempt for attempt in attempts if attempt.charge_id in open_ids]
    return set(
        connection.execute(_LOCK_OPERATIONS, {"attempts": encode_rows(candidates)}).scalars()
    )


def replace(
    connection: Connection, attempts: Sequence[FallbackAttempt], lease_seconds: float
) -> None:
    """Ends locked attempts as NOT_SENT, which is final, and begins the next ones. Their operations
    are leased for `lease_seconds` under the next lease token, so the old one is fenced.
    """
    parameters = {"attempts": encode_rows(attempts)}
    connection.execute(_END_ATTEMPTS, parameters)
    connection.execute(_INSERT_ATTEMPTS, parameters)
    connection.execute(_LEASE_OPERATIONS, {**parameters, "lease": f"{lease_seconds} seconds"})
