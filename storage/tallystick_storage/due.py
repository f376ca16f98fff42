"""Due work of charges: their attempts, who works on them, and when they are taken up again. Locks: attempts before due, each by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.database import rows


@dataclass(slots=True)
class Answer:
    """What the provider said to an attempt; a fact, stored whoever holds the lease."""

    charge_id: str
    number: int
    outcome: str
    provider_reference: str
    charged_amount: int | None
    charged_currency: str | None
    failure_reason: str
    decline_code: str


@dataclass(slots=True)
class Again:
    """A charge that is taken up again in `delay` seconds, None: when a person says so; `tries` have brought it no further, the last for this trouble."""

    charge_id: str
    lease_token: int
    delay: float | None
    maybe_sent: bool
    looking: bool
    tries: int
    trouble: str
    detail: str


_ANSWERS = text("""
    with r as materialized (
        select * from json_to_recordset(cast(:answers as json)) as r (charge_id text, number int, outcome text, provider_reference text,
            charged_amount bigint, charged_currency text, failure_reason text, decline_code text)),
    l as materialized (
        select r.* from attempt a join r on r.charge_id = a.charge_id and r.number = a.number
        where a.end_time is null order by a.charge_id, a.number for update of a)
    update attempt a set outcome = l.outcome, provider_reference = l.provider_reference, charged_amount = l.charged_amount,
        charged_currency = l.charged_currency, failure_reason = l.failure_reason, decline_code = l.decline_code,
        end_time = case when l.outcome in ('SUCCEEDED', 'DECLINED') then clock() end
    from l where a.charge_id = l.charge_id and a.number = l.number
""")
_OPEN_ATTEMPTS = text("""
    select charge_id from attempt where charge_id = any (cast(:charges as text[])) and end_time is null order by charge_id, number for update
""")
_AGAIN = text("""
    update due d set next_attempt_time = clock() + cast(r.delay || ' seconds' as interval), lease_until = clock(), held = false,
        lease_token = d.lease_token + (r.delay is null)::int,  -- what is set aside is nobody's: who held it is fenced
        maybe_sent = d.maybe_sent or r.maybe_sent, looking = r.looking, tries = r.tries, trouble = r.trouble, detail = r.detail
    from json_to_recordset(cast(:again as json)) as r (charge_id text, lease_token bigint, delay text, maybe_sent boolean, looking boolean, tries int,
        trouble text, detail text)
    where d.charge_id = r.charge_id and d.lease_token = r.lease_token
    returning d.charge_id
""")
_REVIVE = text("""
    update due set next_attempt_time = clock(), tries = 0, looking = false
    where charge_id = any (cast(:charges as text[])) and next_attempt_time is null and lease_until <= clock()
""")
_CLAIM_ASIDE = text("""
    update due set lease_until = clock() + cast(:lease as interval), lease_token = lease_token + 1
    where charge_id = :charge_id and next_attempt_time is null and lease_until <= clock() returning lease_token
""")


def record_answers(connection: Connection, answers: Sequence[Answer]) -> None:
    """Writes down what providers said; an attempt that has ended keeps its outcome."""
    connection.execute(_ANSWERS, {"answers": rows(answers)})


def lock_open_attempts(connection: Connection, charge_ids: list[str]) -> set[str]:
    """Locks the attempts of charges that have not ended, so that no answer is written down meanwhile; the charges of those."""
    return set(connection.execute(_OPEN_ATTEMPTS, {"charges": charge_ids}).scalars())


def again_later(connection: Connection, again: Sequence[Again]) -> set[str]:
    """Gives leases back, as far as they still hold; the charges of those."""
    return set(connection.execute(_AGAIN, {"again": rows(again)}).scalars())


def revive(connection: Connection, charge_ids: Sequence[str]) -> None:
    """Makes charges due that were set aside."""
    connection.execute(_REVIVE, {"charges": list(charge_ids)})


def claim_aside(connection: Connection, charge_id: str, lease: float) -> int | None:
    """Leases a charge that was set aside; its lease token, or None if it is not, or somebody holds it."""
    return connection.execute(_CLAIM_ASIDE, {"charge_id": charge_id, "lease": f"{lease} seconds"}).scalar_one_or_none()


_CLAIM = text("""
    with c as materialized (
        select charge_id from due where provider = :provider and next_attempt_time <= clock() and lease_until <= clock()
        order by next_attempt_time, charge_id limit :most for update skip locked),
    d as (
        update due d set lease_until = clock() + cast(:lease as interval), lease_token = d.lease_token + 1, maybe_sent = d.maybe_sent or d.held, held = true
        from c where d.charge_id = c.charge_id returning d.charge_id, d.lease_token)
    select charge_id, lease_token from d order by charge_id
""")


_BACKLOG = text("select count(*) from (select from due where provider = :provider limit :most) d")


def claim(connection: Connection, provider: str, most: int, lease: float) -> dict[str, int]:
    """Leases up to `most` charges of a provider that are due and that nobody holds, for `lease` seconds: charge_id to lease token."""
    parameters = {"provider": provider, "most": most, "lease": f"{lease} seconds"}
    return {row.charge_id: row.lease_token for row in connection.execute(_CLAIM, parameters)}


def backlog(connection: Connection, provider: str, most: int) -> int:
    """How many charges of a provider are open, counted up to `most`."""
    return int(connection.execute(_BACKLOG, {"provider": provider, "most": most}).scalar_one())


_CHARGES = text("""
    select o.*, c.caller, c.payment_token, c.payment_method_type, c.traceparent, a.number, a.provider_key, a.outcome, a.charged_amount, a.charged_currency,
        a.provider_reference as attempt_reference, a.failure_reason as attempt_reason, a.decline_code as attempt_code,
        extract(epoch from clock() - a.start_time) as age, extract(epoch from c.expire_time - clock()) as expires_in, c.cancel_reason,
        o.resolve_by_time < clock() as overdue, d.maybe_sent, d.looking, d.tries
    from unnest(cast(:charges as text[])) as g (charge_id)
    join due d on d.charge_id = g.charge_id
    join lateral (select * from attempt a where a.charge_id = g.charge_id order by number desc limit 1) a on true
    join checkout c on c.checkout_id = a.checkout_id
    join payment_order o on o.checkout_id = c.checkout_id and o.charge_id = g.charge_id and o.status <> 'FAILED'
    order by o.charge_id, o.payment_order_id
""")


def charges(connection: Connection, charge_ids: list[str]) -> Sequence[Row[Any]]:
    """The orders of charges that are to be worked on, with what it takes to go on with them; `age` of the attempt in seconds."""
    return connection.execute(_CHARGES, {"charges": charge_ids}).all()
