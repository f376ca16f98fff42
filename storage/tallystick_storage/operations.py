"""Demands on providers, the same in every schema that makes some: their attempts, who works on
them, and when they are taken up again.

Locks: attempts, due, then whatever a service has of its own, and dead letters last; each by id, and
all due work of a transaction in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.database import encode_rows


@dataclass(slots=True)
class AttemptResult:
    """What the provider said to an attempt; a fact, stored whoever holds the lease."""

    demand_id: str
    number: int
    outcome: str
    provider_reference: str
    moved_amount: int | None
    moved_currency: str | None
    failure_reason: str
    decline_code: str


@dataclass(slots=True)
class Reschedule:
    """A demand that is taken up again in `delay` seconds, None: when a person says so. `sent`: it
    may have been sent under this lease.

    `not_found`: how often the provider did not know it since it may last have been sent; `tries`:
    how often each kind of trouble has come; `recheck_after`: without a delay, the seconds after
    which its time is up, and it is to be ended; None: never.
    """

    demand_id: str
    lease_token: int
    delay: float | None
    sent: bool
    not_found: int
    looking: bool
    tries: Mapping[str, int]
    trouble: str
    detail: str
    phase: str
    """What it waits for, as its service names it."""
    recheck_after: float | None = None


_FINAL_OUTCOMES = ("SUCCEEDED", "DECLINED", "RETURNED")
_RECORD_ATTEMPT_RESULTS = text("""
    with r as materialized (
        select * from json_to_recordset(cast(:answers as json))
            as r (demand_id text collate "C", number int, outcome text, provider_reference text,
            moved_amount bigint, moved_currency text, failure_reason text, decline_code text)),
    l as materialized (
        select r.* from attempt a join r on r.demand_id = a.demand_id and r.number = a.number
        where a.end_time is null order by a.demand_id, a.number for update of a)
    update attempt a set outcome = l.outcome, provider_reference = l.provider_reference,
        moved_amount = l.moved_amount,
        moved_currency = l.moved_currency, failure_reason = l.failure_reason,
            decline_code = l.decline_code,
        end_time = case when l.outcome in ('SUCCEEDED', 'DECLINED', 'RETURNED') then clock() end
    from l where a.demand_id = l.demand_id and a.number = l.number
    returning a.demand_id, a.number
""")
_ENDED_ATTEMPTS = text("""
    select demand_id, number, outcome, provider_reference, moved_amount, moved_currency,
        failure_reason, decline_code
    from json_to_recordset(cast(:attempts as json)) as r (demand_id text collate "C", number int)
        join attempt a using (demand_id, number)
    where a.end_time is not null
""")
_LOCK_OPEN_ATTEMPTS = text("""
    select demand_id from attempt where demand_id = any (cast(:demands as text[]))
        and end_time is null order by demand_id, number for update
""")
_LOCK = text(
    "select from due where demand_id = any (cast(:demands as text[])) order by demand_id for update"
)
_RESCHEDULE = text("""
    with r as materialized (
        select r.demand_id, r.lease_token, r.sent, r.not_found, r.looking, r.trouble, r.detail,
            r.phase, r.recheck_after,
            -- what is to end meanwhile is not set aside
            case when d.recheck then coalesce(r.delay, '0') else r.delay end as delay,
            case when d.recheck and r.delay is null then '{}' else r.tries end as tries
        from json_to_recordset(cast(:again as json))
            as r (demand_id text collate "C", lease_token bigint, delay text, sent boolean,
            not_found int, looking boolean,
            tries jsonb, trouble text, detail text, phase text, recheck_after float)
        join due d on d.demand_id = r.demand_id and d.lease_token = r.lease_token
            order by d.demand_id for update of d)
    update due d set lease_until = clock(), held = false,
        next_attempt_time = case when d.recheck and r.delay is not null then clock()
            else clock() + cast(r.delay || ' seconds' as interval) end,
        recheck_time = case when r.delay is null
            then clock() + make_interval(secs => r.recheck_after) end,
        -- what is set aside is nobody's: who held it is fenced
        lease_token = d.lease_token + (r.delay is null)::int,
        maybe_sent = d.maybe_sent or r.sent, sent_time = case when r.sent then clock()
            else d.sent_time end,
        not_found = r.not_found, looking = r.looking, tries = r.tries, trouble = r.trouble,
            detail = r.detail,
        phase = r.phase, since = case when d.phase = r.phase then d.since else clock() end
    from r where d.demand_id = r.demand_id
    returning d.demand_id, d.next_attempt_time is null as aside
""")
_REQUEUE = text("""
    with l as materialized (select demand_id from due
        where demand_id = any (cast(:demands as text[])) order by demand_id for update)
    update due d set next_attempt_time = clock(), tries = '{}', looking = false
    from l where d.demand_id = l.demand_id and d.next_attempt_time is null
        and d.lease_until <= clock()
""")
_LOCK_OVERDUE = text("""
    select demand_id from due where next_attempt_time is null and recheck_time <= (select clock())
        order by recheck_time, demand_id limit :most for update skip locked
""")
_CLAIM_DEAD_LETTERED = text("""
    update due set next_attempt_time = clock(), lease_until = clock() + cast(:lease as interval),
        lease_token = lease_token + 1, held = true, tries = '{}'
    where demand_id = :demand_id and next_attempt_time is null and lease_until <= clock()
        returning lease_token
""")


_RENEW_LEASES = text("""
    with c as materialized (select demand_id from due
        where demand_id = any (cast(:demands as text[])) order by demand_id for update)
    update due d set next_attempt_time = clock(), lease_until = clock() + cast(:lease as interval),
        lease_token = lease_token + 1, held = true, tries = '{}',
        phase = '', since = clock()
    from c where d.demand_id = c.demand_id returning d.demand_id, d.lease_token
""")


def renew_leases(
    connection: Connection, operation_ids: Sequence[str], lease_seconds: float
) -> dict[str, int]:
    """Leases demands, whoever holds them, for `lease_seconds` seconds: demand_id to lease token.
    For what a person has decided, and must happen now.
    """
    leases = connection.execute(
        _RENEW_LEASES, {"demands": list(operation_ids), "lease": f"{lease_seconds} seconds"}
    )
    return {row.demand_id: row.lease_token for row in leases}


def record_attempt_results(
    connection: Connection, results: Sequence[AttemptResult]
) -> dict[tuple[str, int], AttemptResult]:
    """Writes down what providers said; an attempt that has ended keeps its outcome.

    Two holders may tell of one attempt at a time; then the first final answer counts, or the last
    if none is. Returns the final answers that stand now, by demand and number, whoever gave them.
    """
    chosen: dict[tuple[str, int], AttemptResult] = {}
    for result in results:
        previous = chosen.get((result.demand_id, result.number))
        if previous is None or previous.outcome not in _FINAL_OUTCOMES:
            chosen[result.demand_id, result.number] = result
    recorded = {
        (row.demand_id, row.number)
        for row in connection.execute(
            _RECORD_ATTEMPT_RESULTS, {"answers": encode_rows(list(chosen.values()))}
        )
    }
    final = {
        key: result
        for key, result in chosen.items()
        if key in recorded and result.outcome in _FINAL_OUTCOMES
    }
    ended = [
        {"demand_id": operation_id, "number": number}
        for operation_id, number in chosen.keys() - recorded
    ]
    for row in (
        connection.execute(_ENDED_ATTEMPTS, {"attempts": encode_rows(ended)}) if ended else ()
    ):
        final[row.demand_id, row.number] = AttemptResult(*row)
    return final


def lock_open_attempts(connection: Connection, operation_ids: list[str]) -> set[str]:
    """Locks the attempts of demands that have not ended, so that no answer is written down
    meanwhile; the demands of those.
    """
    return set(connection.execute(_LOCK_OPEN_ATTEMPTS, {"demands": operation_ids}).scalars())


def lock(connection: Connection, operation_ids: Sequence[str]) -> None:
    """Locks the due work of demands, for a transaction that changes it in several statements, or
    dead letters before it.
    """
    connection.execute(_LOCK, {"demands": list(operation_ids)})


def reschedule(connection: Connection, reschedules: Sequence[Reschedule]) -> dict[str, bool]:
    """Gives leases back, as far as they still hold; for the demands of those whether they are set
    aside. One of which something else is wanted by now is not.
    """
    return {
        row.demand_id: row.aside
        for row in connection.execute(_RESCHEDULE, {"again": encode_rows(reschedules)})
    }


def requeue(connection: Connection, operation_ids: Sequence[str]) -> None:
    """Makes demands due that were set aside."""
    connection.execute(_REQUEUE, {"demands": list(operation_ids)})


def lock_overdue(connection: Connection, limit: int) -> list[str]:
    """Locks up to so many demands that were set aside, and whose time is up."""
    return list(connection.execute(_LOCK_OVERDUE, {"most": limit}).scalars())


def claim_dead_lettered(
    connection: Connection, operation_id: str, lease_seconds: float
) -> int | None:
    """Leases a demand that was set aside, which is due again; its lease token, or None if it is
    not, or somebody holds it.
    """
    return connection.execute(
        _CLAIM_DEAD_LETTERED, {"demand_id": operation_id, "lease": f"{lease_seconds} seconds"}
    ).scalar_one_or_none()


_CLAIM = text("""
    with c as materialized (
        select demand_id from due where provider = :provider and ready_time <= (select clock())
        order by ready_time, demand_id limit :most for update skip locked),
    d as (
        update due d set lease_until = clock() + cast(:lease as interval),
            lease_token = d.lease_token + 1, maybe_sent = d.maybe_sent or d.held, held = true,
            -- a dead holder may have sent it until then
            sent_time = case when d.held then greatest(d.sent_time, d.lease_until)
                else d.sent_time end,
            not_found = case when d.held then 0 else d.not_found end, recheck = false
        from c where d.demand_id = c.demand_id returning d.demand_id, d.lease_token)
    select demand_id, lease_token from d order by demand_id
""")


_FIND_HELD = text("""
    select demand_id, lease_token from due where demand_id = any (cast(:demands as text[]))
        and lease_until > (select clock()) and not recheck
""")


def find_held(connection: Connection, operation_ids: Sequence[str]) -> dict[str, int]:
    """Of the demands those that somebody holds, and of which nothing else has been wanted since:
    demand_id to lease token.
    """
    return {
        row.demand_id: row.lease_token
        for row in connection.execute(_FIND_HELD, {"demands": list(operation_ids)})
    }


_LIST_PROVIDERS = text("""
    -- one step of the index for each provider, however many rows it has
    with recursive p (provider) as (
        select min(provider) from due where ready_time is not null
        union all
        select (select min(d.provider) from due d where d.provider > p.provider
            and d.ready_time is not null) from p where p.provider is not null)
    select provider from p where provider is not null order by provider
""")
_RELEASE_LEASES = text("""
    with c as materialized (
        select d.demand_id from due d join json_to_recordset(cast(:leases as json))
            as r (demand_id text collate "C", lease_token bigint)
            on d.demand_id = r.demand_id and d.lease_token = r.lease_token
        where d.lease_until > clock() order by d.demand_id for update of d)
    update due d set lease_until = clock() from c where d.demand_id = c.demand_id
""")
_COUNT_BACKLOG = text("""
    select count(*)
        from (select from due where phase = :phase and provider = :provider
        and next_attempt_time is not null limit :most) d
""")


def claim(
    connection: Connection, provider: str, limit: int, lease_seconds: float
) -> dict[str, int]:
    """Leases up to `limit` demands on a provider that are due and that nobody holds, for
    `lease_seconds` seconds: demand_id to lease token.
    """
    parameters = {"provider": provider, "most": limit, "lease": f"{lease_seconds} seconds"}
    return {row.demand_id: row.lease_token for row in connection.execute(_CLAIM, parameters)}


def list_providers(connection: Connection) -> list[str]:
    """The providers of whatever may be claimed, also those that are not configured any more."""
    return list(connection.execute(_LIST_PROVIDERS).scalars())


def release_leases(connection: Connection, lease_tokens: Mapping[str, int]) -> None:
    """Ends the leases that still hold. Who takes such work up next regards it as sent, as after a
    lease that ran out.
    """
    leases = [
        {"demand_id": operation_id, "lease_token": token}
        for operation_id, token in lease_tokens.items()
    ]
    connection.execute(_RELEASE_LEASES, {"leases": encode_rows(leases)})


def count_backlog(connection: Connection, provider: str, phase: str, limit: int) -> int:
    """How many demands on a provider are in a phase, dead letters apart, counted up to `limit`."""
    return int(
        connection.execute(
            _COUNT_BACKLOG, {"provider": provider, "phase": phase, "most": limit}
        ).scalar_one()
    )


_HAS_RETRY_REASON = text("""
    select exists (select from due where demand_id = :demand_id
        and (trouble = :trouble or jsonb_exists(tries, :trouble)))
""")


def has_retry_reason(connection: Connection, operation_id: str, retry_reason: str) -> bool:
    """Whether a demand has met a kind of trouble since it was last revived, or meets it now."""
    return bool(
        connection.execute(
            _HAS_RETRY_REASON, {"demand_id": operation_id, "trouble": retry_reason}
        ).scalar_one()
    )


_LIST_ATTEMPTS = text("""
    select demand_id, number, provider, provider_key, outcome, provider_reference, start_time,
        end_time from attempt where demand_id = :demand_id order by number
""")


def list_attempts(connection: Connection, operation_id: str) -> Sequence[Row[Any]]:
    """Every attempt at a demand, oldest first."""
    return connection.execute(_LIST_ATTEMPTS, {"demand_id": operation_id}).all()
