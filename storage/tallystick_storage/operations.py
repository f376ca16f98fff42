"""The operation queue and its attempts; the tables are the same in every schema that calls
providers.

Locks: attempts, operations, then the service's own tables, and dead letters last. Each table is
locked by key, and all operations of a transaction in one pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from tallystick_core.operations.kind import KindName
from tallystick_storage.database import encode_rows
from tallystick_storage.operation_key import KEYS, OperationKey, key_parameters
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(slots=True)
class AttemptResult:
    """The provider's answer to an attempt. It is stored under any lease."""

    kind: str
    operation_id: str
    attempt_number: int
    outcome: str
    provider_reference: str
    moved_amount: int | None
    moved_currency: str | None
    failure_reason: str
    decline_code: str
    provider_fee: int | None = None
    """Minor units; None: the provider has not reported it."""
    provider_fee_currency: str | None = None
    provider_request_id: str = field(default="", compare=False)
    """The provider's id of the request that it answers; "": none."""


@dataclass(slots=True)
class Reschedule:
    """When to run an operation next: after `delay_seconds`, or (None) only when an operator
    requeues it. `maybe_sent`: it may have been sent under this lease.

    `not_found_count` counts the lookups that found nothing since it may last have been sent.
    `retry_counts` counts the tries for each retry reason. `expire_after_seconds` applies without
    a delay: the seconds after which the operation expires and must be ended; None: never.
    """

    kind: str
    operation_id: str
    lease_token: int
    delay_seconds: float | None
    maybe_sent: bool
    not_found_count: int
    lookup_only: bool
    retry_counts: Mapping[str, int]
    retry_reason: str
    detail: str
    phase: str
    """What the operation waits for, in its service's terms."""
    expire_after_seconds: float | None = None


class AttemptKey(NamedTuple):
    kind: str
    operation_id: str
    attempt_number: int


class AttemptRow(NamedTuple):
    """An attempt as it is shown. `end_time` is None until its outcome is final."""

    operation_id: str
    attempt_number: int
    provider: str
    provider_key: str
    routing_rule: str
    routing_reason: str
    outcome: str
    provider_reference: str
    provider_fee: int | None
    provider_fee_currency: str | None
    start_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class _KeyRow:
    kind: str
    operation_id: str

    @property
    def key(self) -> OperationKey:
        return OperationKey(KindName(self.kind), self.operation_id)


@dataclass(frozen=True, slots=True)
class _LeaseRow(_KeyRow):
    lease_token: int


@dataclass(frozen=True, slots=True)
class ClaimedLease(_LeaseRow):
    """A lease on an operation. `was_leased`: another lease on it had expired."""

    was_leased: bool


@dataclass(frozen=True, slots=True)
class _RescheduledRow(_KeyRow):
    is_dead_lettered: bool


_FINAL_OUTCOMES = ("SUCCEEDED", "DECLINED", "RETURNED")
_RECORD_ATTEMPT_RESULTS = Query(
    AttemptKey,
    f"""
    with r as materialized (
        select * from json_to_recordset(cast(:results as json))
            as r (kind text collate "C", operation_id text collate "C", attempt_number int,
                outcome text, provider_reference text,
            moved_amount bigint, moved_currency text, failure_reason text, decline_code text,
            provider_fee bigint, provider_fee_currency text, provider_request_id text)),
    l as materialized (
        select r.* from attempt a join r on r.kind = a.kind and r.operation_id = a.operation_id
            and r.attempt_number = a.attempt_number
        where a.end_time is null
            -- a provider may tell its fee later than the success
            or (a.outcome = 'SUCCEEDED' and a.provider_fee is null and r.outcome = a.outcome
                and r.provider_fee is not null and r.provider_reference = a.provider_reference
                and r.moved_amount = a.moved_amount and r.moved_currency = a.moved_currency)
        order by a.kind, a.operation_id, a.attempt_number for update of a)
    update attempt a set outcome = l.outcome,
        provider_reference = coalesce(nullif(l.provider_reference, ''), a.provider_reference),
        moved_amount = l.moved_amount,
        moved_currency = l.moved_currency, failure_reason = l.failure_reason,
            decline_code = l.decline_code,
        provider_fee = l.provider_fee, provider_fee_currency = l.provider_fee_currency,
        provider_request_id = case when a.end_time is null
            then coalesce(nullif(l.provider_request_id, ''), a.provider_request_id)
            else a.provider_request_id end,
        end_time = case when l.outcome in ('SUCCEEDED', 'DECLINED', 'RETURNED')
            then coalesce(a.end_time, clock()) end
    from l where a.kind = l.kind and a.operation_id = l.operation_id
        and a.attempt_number = l.attempt_number
    returning {columns(AttemptKey, "a")}
    """,
)
_ENDED_ATTEMPTS = Query(
    AttemptResult,
    """
    select {columns} from json_to_recordset(cast(:attempts as json))
        as r (kind text collate "C", operation_id text collate "C", attempt_number int)
        join attempt a using (kind, operation_id, attempt_number)
    where a.end_time is not null
    """,
)
_LOCK_OPEN_ATTEMPTS = text("""
    select operation_id from attempt where kind = :kind
        and operation_id = any (cast(:ids as text[]))
        and end_time is null order by operation_id, attempt_number for update
""")
_BY_KEY = "op.kind = k.kind and op.operation_id = k.operation_id"
_LOCK = Query(
    _LeaseRow,
    f"""
    select k.kind, k.operation_id, op.lease_token from {KEYS} cross join lateral (
        select op.lease_token from operation op where {_BY_KEY} limit 1 for update) op
    """,
)
_RESCHEDULE = Query(
    _RescheduledRow,
    """
    with r as materialized (
        select r.kind, r.operation_id, r.lease_token, r.maybe_sent, r.not_found_count,
            r.lookup_only, r.retry_reason, r.detail,
            r.phase, r.expire_after_seconds,
            -- an operation that is to end meanwhile is not dead-lettered
            case when op.has_changed then coalesce(r.delay_seconds, '0')
                else r.delay_seconds end as delay_seconds,
            case when op.has_changed and r.delay_seconds is null then '{}'
                else r.retry_counts end as retry_counts
        from json_to_recordset(cast(:reschedules as json))
            as r (kind text collate "C", operation_id text collate "C", lease_token bigint,
                delay_seconds text, maybe_sent boolean,
            not_found_count int, lookup_only boolean,
            retry_counts jsonb, retry_reason text, detail text, phase text,
                expire_after_seconds float)
        join operation op on op.kind = r.kind and op.operation_id = r.operation_id
            and op.lease_token = r.lease_token
            order by op.kind, op.operation_id for update of op)
    update operation op set lease_until = clock(), is_leased = false,
        next_try_time = case when op.has_changed and r.delay_seconds is not null then clock()
            else clock() + cast(r.delay_seconds || ' seconds' as interval) end,
        expire_time = case when r.delay_seconds is null
            then clock() + make_interval(secs => r.expire_after_seconds) end,
        -- a dead letter has no holder: the last one is fenced
        lease_token = op.lease_token + (r.delay_seconds is null)::int,
        maybe_sent = op.maybe_sent or r.maybe_sent, sent_time = case when r.maybe_sent then clock()
            else op.sent_time end,
        not_found_count = r.not_found_count, lookup_only = r.lookup_only,
            retry_counts = r.retry_counts, retry_reason = r.retry_reason,
            detail = r.detail,
        phase = r.phase, phase_start_time = case when op.phase = r.phase then op.phase_start_time
            else clock() end
    from r where op.kind = r.kind and op.operation_id = r.operation_id
    returning op.kind, op.operation_id, op.next_try_time is null as is_dead_lettered
    """,
)
_REQUEUE = text(f"""
    with l as materialized (select k.kind, k.operation_id from {KEYS} cross join lateral (
        select from operation op where {_BY_KEY} limit 1 for update) op)
    update operation op set next_try_time = clock(), retry_counts = '{{}}', lookup_only = false
    from l k where {_BY_KEY} and op.next_try_time is null and op.lease_until <= clock()
""")
_LOCK_EXPIRED = Query(
    _KeyRow,
    """
    select {columns} from operation where next_try_time is null
        and expire_time <= (select clock())
        order by expire_time, kind, operation_id limit :limit for update skip locked
    """,
)
_CLAIM_DEAD_LETTERED = text("""
    update operation set next_try_time = clock(),
        lease_until = clock() + cast(:lease as interval),
        lease_token = lease_token + 1, is_leased = true, retry_counts = '{}'
    where kind = :kind and operation_id = :operation_id and next_try_time is null
        and lease_until <= clock()
        returning lease_token
""")


_FORCE_CLAIM = Query(
    _LeaseRow,
    f"""
    with c as materialized (select operation_id from operation where kind = :kind
        and operation_id = any (cast(:ids as text[])) order by operation_id for update)
    update operation op set next_try_time = clock(),
        lease_until = clock() + cast(:lease as interval),
        lease_token = lease_token + 1, is_leased = true, retry_counts = '{{}}',
        phase = '', phase_start_time = clock()
    from c where op.kind = :kind and op.operation_id = c.operation_id
    returning {columns(_LeaseRow, "op")}
    """,
)


def force_claim(
    connection: Connection, kind: KindName, operation_ids: Sequence[str], lease_seconds: float
) -> dict[str, int]:
    """Leases operations of a kind for `lease_seconds` seconds, even if another process holds them.
    Returns the lease token by operation_id. For an operator's decision that must take effect
    immediately.
    """
    leases = _FORCE_CLAIM.all(
        connection, kind=kind, ids=list(operation_ids), lease=f"{lease_seconds} seconds"
    )
    return {row.operation_id: row.lease_token for row in leases}


def record_attempt_results(
    connection: Connection, results: Sequence[AttemptResult]
) -> dict[tuple[str, str, int], AttemptResult]:
    """Stores what providers answered. An attempt that has ended keeps its outcome; a fee that is
    reported later is added once. A reference is kept until another one is reported.

    Two lease holders may report on one attempt at the same time. The first final answer counts, or
    the last answer if none is final. Returns the stored final answers by kind, operation id and
    attempt number, including those stored before.
    """
    chosen: dict[AttemptKey, AttemptResult] = {}
    for result in results:
        key = _attempt_key_of(result)
        previous = chosen.get(key)
        if (
            previous is None
            or previous.outcome not in _FINAL_OUTCOMES
            or previous == _without_fee(result)
        ):
            chosen[key] = result
    recorded = set(
        _RECORD_ATTEMPT_RESULTS.all(connection, results=encode_rows(list(chosen.values())))
    )
    final: dict[tuple[str, str, int], AttemptResult] = {
        key: result
        for key, result in chosen.items()
        if key in recorded and result.outcome in _FINAL_OUTCOMES
    }
    ended = [key._asdict() for key in sorted(chosen.keys() - recorded)]
    if ended:
        for stored in _ENDED_ATTEMPTS.all(connection, attempts=encode_rows(ended)):
            final[_attempt_key_of(stored)] = stored
    return final


def _without_fee(result: AttemptResult) -> AttemptResult:
    return replace(result, provider_fee=None, provider_fee_currency=None)


def _attempt_key_of(result: AttemptResult) -> AttemptKey:
    return AttemptKey(result.kind, result.operation_id, result.attempt_number)


def lock_open_attempts(
    connection: Connection, kind: KindName, operation_ids: list[str]
) -> set[str]:
    """Locks the open attempts of operations of a kind, so that no answer is stored meanwhile.
    Returns the ids of the operations that have one.
    """
    parameters = {"kind": kind, "ids": operation_ids}
    return set(connection.execute(_LOCK_OPEN_ATTEMPTS, parameters).scalars())


def lock(connection: Connection, keys: Iterable[OperationKey]) -> dict[OperationKey, int]:
    """Locks operations, for a transaction that changes them in several statements or that locks
    dead letters afterwards. Returns their lease tokens.
    """
    rows = _LOCK.all(connection, **key_parameters(keys))
    return {row.key: row.lease_token for row in rows}


_MAKE_DUE = text("""
    update operation set next_try_time = clock(), has_changed = true
    where kind = :kind and operation_id = any (cast(:ids as text[])) and next_try_time is not null
""")


def make_due(connection: Connection, kind: KindName, operation_ids: Sequence[str]) -> None:
    """Schedules locked operations of a kind now, and as soon as their holder releases them. Dead
    letters stay as they are.
    """
    connection.execute(_MAKE_DUE, {"kind": kind, "ids": list(operation_ids)})


def reschedule(
    connection: Connection, reschedules: Sequence[Reschedule]
) -> dict[OperationKey, bool]:
    """Releases the leases that are still valid. Returns by key whether the operation is
    dead-lettered. An operation whose request changed meanwhile is not dead-lettered.
    """
    rows = _RESCHEDULE.all(connection, reschedules=encode_rows(reschedules))
    return {row.key: row.is_dead_lettered for row in rows}


def requeue(connection: Connection, keys: Iterable[OperationKey]) -> None:
    """Schedules dead-lettered operations again."""
    connection.execute(_REQUEUE, key_parameters(keys))


def lock_expired(connection: Connection, limit: int) -> list[OperationKey]:
    """Locks up to `limit` dead-lettered operations that have expired."""
    return [row.key for row in _LOCK_EXPIRED.all(connection, limit=limit)]


def claim_dead_lettered(
    connection: Connection, key: OperationKey, lease_seconds: float
) -> int | None:
    """Leases a dead-lettered operation and schedules it again. Returns its lease token, or None if
    it is not dead-lettered or is leased.
    """
    token: int | None = connection.execute(
        _CLAIM_DEAD_LETTERED,
        {
            **key._asdict(),
            "lease": f"{lease_seconds} seconds",
        },
    ).scalar_one_or_none()
    return token


_CLAIM = Query(
    ClaimedLease,
    f"""
    with c as materialized (
        select kind, operation_id, is_leased from operation where provider = :provider
            and ready_time <= (select clock())
        order by ready_time, kind, operation_id limit :limit for update skip locked),
    op as (
        update operation op set lease_until = clock() + cast(:lease as interval),
            lease_token = op.lease_token + 1, maybe_sent = op.maybe_sent or op.is_leased,
                is_leased = true,
            -- a crashed holder may have sent it until its lease expired
            sent_time = case when op.is_leased then greatest(op.sent_time, op.lease_until)
                else op.sent_time end,
            not_found_count = case when op.is_leased then 0 else op.not_found_count end,
                has_changed = false
        from c where op.kind = c.kind and op.operation_id = c.operation_id
        returning {columns(_LeaseRow, "op")}, c.is_leased as was_leased)
    select {{columns}} from op order by kind, operation_id
    """,
)


_FIND_HELD = Query(
    _LeaseRow,
    f"""
    select k.kind, k.operation_id, op.lease_token from {KEYS} cross join lateral (
        select op.lease_token from operation op where {_BY_KEY}
            and op.lease_until > (select clock()) and not op.has_changed limit 1) op
    """,
)


def find_held(connection: Connection, keys: Iterable[OperationKey]) -> dict[OperationKey, int]:
    """Returns the operations that are leased and whose request has not changed since, with their
    lease tokens.
    """
    rows = _FIND_HELD.all(connection, **key_parameters(keys))
    return {row.key: row.lease_token for row in rows}


_LIST_PROVIDERS = text("""
    -- one index probe per provider, however many rows it has
    with recursive p (provider) as (
        select min(provider) from operation where ready_time is not null
        union all
        select (select min(op.provider) from operation op where op.provider > p.provider
            and op.ready_time is not null) from p where p.provider is not null)
    select provider from p where provider is not null order by provider
""")
_RELEASE_LEASES = text("""
    with c as materialized (
        select op.kind, op.operation_id
        from operation op join json_to_recordset(cast(:leases as json))
            as r (kind text collate "C", operation_id text collate "C", lease_token bigint)
            on op.kind = r.kind and op.operation_id = r.operation_id
                and op.lease_token = r.lease_token
        where op.lease_until > clock() order by op.kind, op.operation_id for update of op)
    update operation op set lease_until = clock()
    from c where op.kind = c.kind and op.operation_id = c.operation_id
""")
_COUNT_BACKLOG = text("""
    select count(*)
        from (select from operation where kind = :kind and phase = '' and provider = :provider
        and next_try_time is not null limit :limit) d
""")


def claim(
    connection: Connection, provider: str, limit: int, lease_seconds: float
) -> Sequence[ClaimedLease]:
    """Leases up to `limit` operations of a provider that are due and not leased, for
    `lease_seconds` seconds.
    """
    return _CLAIM.all(connection, provider=provider, limit=limit, lease=f"{lease_seconds} seconds")


def list_providers(connection: Connection) -> list[str]:
    """The providers of all operations that may be claimed, including providers that are no longer
    configured.
    """
    providers: list[str] = connection.execute(_LIST_PROVIDERS).scalars()
    return providers


def release_leases(connection: Connection, lease_tokens: Mapping[OperationKey, int]) -> None:
    """Ends the leases that are still valid. The next holder treats such an operation as possibly
    sent, as after a lease that expired.
    """
    leases = [{**key._asdict(), "lease_token": token} for key, token in lease_tokens.items()]
    connection.execute(_RELEASE_LEASES, {"leases": encode_rows(leases)})


def count_backlog(connection: Connection, kind: KindName, provider: str, limit: int) -> int:
    """Counts a provider's scheduled operations of a kind that are in no phase, up to `limit`."""
    return int(
        connection.execute(
            _COUNT_BACKLOG, {"kind": kind, "provider": provider, "limit": limit}
        ).scalar_one()
    )


_HAS_RETRY_REASON = text("""
    select exists (select from operation where kind = :kind and operation_id = :operation_id
        and (retry_reason = :retry_reason or jsonb_exists(retry_counts, :retry_reason)))
""")


def has_retry_reason(connection: Connection, key: OperationKey, retry_reason: str) -> bool:
    """Whether an operation has had a retry reason since it was last requeued, or has it now."""
    return bool(
        connection.execute(
            _HAS_RETRY_REASON,
            {**key._asdict(), "retry_reason": retry_reason},
        ).scalar_one()
    )


_LIST_ATTEMPTS = Query(
    AttemptRow,
    """
    select {columns} from attempt where kind = :kind and operation_id = :operation_id
        order by attempt_number
    """,
)


def list_attempts(connection: Connection, key: OperationKey) -> Sequence[AttemptRow]:
    """Every attempt of an operation, oldest first."""
    return _LIST_ATTEMPTS.all(connection, **key._asdict())
