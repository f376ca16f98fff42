"""The tables of the look-alike: objects, balances, idempotency keys and deliveries of events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from tallystick_storage.sql import Connection, Query, text

PLATFORM = "acct_platform"
"""The account of the platform itself. Requests with Stripe-Account are about another one."""


@dataclass(slots=True)
class StoredObject:
    """An object of the API. `body`: as the API shows it; `plan`: what the sandbox will do with it;
    `due_time`: when it advances by itself, None: never.
    """

    id: str
    type: str
    account: str
    body: dict[str, Any]
    plan: dict[str, Any] = field(default_factory=dict)
    due_time: datetime | None = None


class _ObjectRow(NamedTuple):
    id: str
    type: str
    account: str
    body: dict[str, Any]
    plan: dict[str, Any]
    due_time: datetime | None


_FIND = Query(_ObjectRow, "select {columns} from stripe_object where id = :id")
_LOCK = Query(_ObjectRow, "select {columns} from stripe_object where id = :id for update")
_FIND_ALL = Query(
    _ObjectRow, "select {columns} from stripe_object where id = any (cast(:ids as text[]))"
)
_SAVE = text("""
    insert into stripe_object (id, type, account, body, plan, due_time, create_time)
    select id, type, account, body, plan, due_time, (select clock())
    from json_to_recordset(cast(:rows as json)) as r (position int, id text, type text,
        account text, body jsonb, plan jsonb, due_time timestamptz) order by position
    on conflict (id) do update set body = excluded.body, plan = excluded.plan,
        due_time = excluded.due_time
""")
_LIST = Query(
    _ObjectRow,
    """
    select {columns} from stripe_object
    where account = :account and type = :type and body @> cast(:filter as jsonb)
        and plan @> cast(:plan as jsonb)
        and (cast(:event_patterns as text[]) = '{}'
            or body ->> 'type' like any (cast(:event_patterns as text[])))
        and cast(body ->> 'created' as bigint) between :first and :last
        and create_time <= (select clock()) - cast(:lag as interval)
        and (cast(:after as bigint) is null or sequence < :after)
        and (cast(:before as bigint) is null or sequence > :before)
    order by sequence desc limit :limit
    """,
)
_LIST_BEFORE = Query(
    _ObjectRow,
    """
    select {columns} from stripe_object
    where account = :account and type = :type and body @> cast(:filter as jsonb)
        and plan @> cast(:plan as jsonb)
        and (cast(:event_patterns as text[]) = '{}'
            or body ->> 'type' like any (cast(:event_patterns as text[])))
        and cast(body ->> 'created' as bigint) between :first and :last
        and sequence > :before
    order by sequence limit :limit
    """,
)
_LIST_UNPAID = Query(
    _ObjectRow,
    """
    select {columns} from stripe_object
    where type = 'balance_transaction' and account = :account
        and body @> jsonb_build_object('currency', cast(:currency as text))
        and not jsonb_exists(plan, 'payout')
        and cast(body ->> 'available_on' as bigint) <= :timestamp
    order by sequence limit :limit for update
    """,
)
_MAX_UNPAID = 10_000
_SEQUENCE = text("select sequence from stripe_object where id = :id")
_HAS_DUE = text("select exists (select from stripe_object where due_time <= (select clock()))")
_LIST_DUE = text("""
    select id from stripe_object where due_time <= (select clock()) order by due_time limit :limit
    for update skip locked
""")


def find_object(connection: Connection, id_: str, *, lock: bool = False) -> StoredObject | None:
    """An object, locked until the end of the transaction if asked for."""
    row = (_LOCK if lock else _FIND).one_or_none(connection, id=id_)
    return None if row is None else StoredObject(*row)


def find_objects(connection: Connection, ids: Sequence[str]) -> list[StoredObject]:
    return [StoredObject(*row) for row in _FIND_ALL.all(connection, ids=list(ids))]


def save_objects(connection: Connection, objects: Sequence[StoredObject]) -> None:
    """Inserts new objects in this order, and updates the others."""
    rows = [
        {
            "position": position,
            "id": item.id,
            "type": item.type,
            "account": item.account,
            "body": item.body,
            "plan": item.plan,
            "due_time": item.due_time,
        }
        for position, item in enumerate(objects)
    ]
    connection.execute(_SAVE, {"rows": orjson.dumps(rows).decode()})


@dataclass(frozen=True, slots=True)
class ListFilter:
    """What a list shows. `values`: what the bodies contain; `created`: bounds in Unix seconds, both
    inclusive; `after` and `before`: ids of objects; `lag_seconds`: how old objects must be;
    `plan`: what their plans contain; `event_patterns`: the types of events, as patterns of LIKE.
    """

    account: str
    type: str
    values: Mapping[str, Any]
    limit: int
    created: tuple[int, int] = (0, 2**62)
    after: str = ""
    before: str = ""
    lag_seconds: float = 0.0
    plan: Mapping[str, Any] = field(default_factory=dict)
    event_patterns: tuple[str, ...] = ()


def list_objects(connection: Connection, list_filter: ListFilter) -> list[StoredObject]:
    """The newest objects first. With `before`, those that come just before it in that order."""
    after, before = (
        connection.execute(_SEQUENCE, {"id": id_}).scalar_one_or_none() if id_ else None
        for id_ in (list_filter.after, list_filter.before)
    )
    parameters = {
        "account": list_filter.account,
        "type": list_filter.type,
        "filter": orjson.dumps(list_filter.values).decode(),
        "event_patterns": list(list_filter.event_patterns),
        "plan": orjson.dumps(list_filter.plan).decode(),
        "first": list_filter.created[0],
        "last": list_filter.created[1],
        "before": before,
        "limit": list_filter.limit,
    }
    if before is not None and not list_filter.after:
        rows = _LIST_BEFORE.all(connection, **parameters)[::-1]
    else:
        lag = f"{list_filter.lag_seconds} seconds"
        rows = _LIST.all(connection, after=after, lag=lag, **parameters)
    return [StoredObject(*row) for row in rows]


def list_unpaid(
    connection: Connection, account: str, currency: str, timestamp: int
) -> list[StoredObject]:
    """The oldest 10,000 available balance transactions that no automatic payout has paid, locked.
    `timestamp`: the present time in Unix seconds.
    """
    rows = _LIST_UNPAID.all(
        connection, account=account, currency=currency, timestamp=timestamp, limit=_MAX_UNPAID
    )
    return [StoredObject(*row) for row in rows]


def has_due_objects(connection: Connection) -> bool:
    is_due: bool = connection.execute(_HAS_DUE).scalar_one()
    return is_due


def list_due_ids(connection: Connection, limit: int) -> list[str]:
    """Objects that are due, locked."""
    return connection.execute(_LIST_DUE, {"limit": limit}).scalars()


class Balance(NamedTuple):
    """The money of an account in one currency, in minor units. `pending`: the part that is not
    available yet.
    """

    currency: str
    total: int
    pending: int


_PENDING = """
    coalesce((select sum(cast(o.body ->> 'net' as bigint)) from stripe_object o
        where o.type = 'balance_transaction' and o.account = b.account
            and o.body @> jsonb_build_object('currency', b.currency, 'status', 'pending')
            and cast(o.body ->> 'available_on' as bigint) > extract(epoch from :now)), 0)
"""
_LIST_BALANCES = Query(
    Balance,
    f"""
    select b.currency, b.total, cast({_PENDING} as bigint) as pending
    from stripe_balance b where b.account = :account order by b.currency
    """,
)
_LOCK_BALANCE = text(
    "select total from stripe_balance where account = :account and currency = :currency for update"
)
_ADD_TO_BALANCES = text("""
    insert into stripe_balance as b (account, currency, total)
    select account, currency, amount from json_to_recordset(cast(:rows as json))
        as r (account text, currency text, amount bigint) order by account, currency
    on conflict (account, currency) do update set total = b.total + excluded.total
""")


def list_balances(connection: Connection, account: str, now: datetime) -> list[Balance]:
    return _LIST_BALANCES.all(connection, account=account, now=now)


def lock_balance(connection: Connection, account: str, currency: str) -> None:
    """Locks a balance until the end of the transaction, so that nothing is spent twice."""
    connection.execute(_LOCK_BALANCE, {"account": account, "currency": currency})


def add_to_balances(connection: Connection, amounts: Mapping[tuple[str, str], int]) -> None:
    """Adds amounts, by account and currency."""
    rows = [
        {"account": account, "currency": currency, "amount": amount}
        for (account, currency), amount in sorted(amounts.items())
    ]
    connection.execute(_ADD_TO_BALANCES, {"rows": orjson.dumps(rows).decode()})


class StoredAnswer(NamedTuple):
    """The first result of an idempotency key. `status` is 0 until the request is executed."""

    fingerprint: bytes
    request_id: str
    status: int
    body: str
    is_expired: bool


_INSERT_KEY = text("""
    insert into stripe_key (account, key, fingerprint, request_id, status, body, create_time)
    values (:account, :key, :fingerprint, :request_id, 0, '', clock()) on conflict do nothing
""")
_FIND_KEY = Query(
    StoredAnswer,
    """
    select fingerprint, request_id, status, body,
        create_time < clock() - cast(:window as interval) as is_expired
    from stripe_key where account = :account and key = :key for update
    """,
)
_RENEW_KEY = text("""
    update stripe_key set fingerprint = :fingerprint, request_id = :request_id, status = 0,
        body = '', create_time = clock()
    where account = :account and key = :key
""")
_STORE_ANSWER = text(
    "update stripe_key set status = :status, body = :body where account = :account and key = :key"
)
_PRUNE_KEYS = text("""
    delete from stripe_key where (account, key) in (
        select account, key from stripe_key
            where create_time < (select clock()) - cast(:window as interval)
            order by create_time limit 1000 for update skip locked)
""")


def claim_key(
    connection: Connection,
    account: str,
    key: str,
    fingerprint: bytes,
    request_id: str,
    window_seconds: float,
) -> StoredAnswer | None:
    """Stores a new key, or returns the answer of the request that used it first. A key that is
    older than `window_seconds` is new again.
    """
    parameters = {"account": account, "key": key}
    values = {**parameters, "fingerprint": fingerprint, "request_id": request_id}
    if connection.execute(_INSERT_KEY, values).rowcount:
        return None
    stored = _FIND_KEY.one(connection, window=f"{window_seconds} seconds", **parameters)
    if not stored.is_expired:
        return stored
    connection.execute(_RENEW_KEY, values)
    return None


def store_answer(connection: Connection, account: str, key: str, status: int, body: str) -> None:
    """Stores the result of a claimed key."""
    connection.execute(
        _STORE_ANSWER, {"account": account, "key": key, "status": status, "body": body}
    )


def prune_keys(connection: Connection, window_seconds: float) -> None:
    """Deletes up to 1,000 expired keys."""
    connection.execute(_PRUNE_KEYS, {"window": f"{window_seconds} seconds"})
