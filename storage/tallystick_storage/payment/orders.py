"""Checkouts and orders. Lock order: attempts, operations, checkouts, orders, dead letters, each by
id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_core.operations.alert import AlertKind
from tallystick_core.payment.state import OrderStatus, PaymentTransitionReason
from tallystick_storage.alerts import AlertQuery, operation_alert_queries
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox


@dataclass(slots=True)
class NewCheckout:
    """A checkout to store. `fingerprint` is in hex; `open_orders` counts the orders that passed the
    risk check.
    """

    checkout_id: str
    caller: str
    owner: str
    fingerprint: str
    buyer_info: str
    seller_info: str
    buyer_country: str
    payment_token: str
    payment_method_type: str
    charge_mode: str
    partial_failure_policy: str
    provider: str
    traceparent: str
    expire_time: datetime | None
    order_count: int
    open_orders: int


@dataclass(slots=True)
class NewOrder:
    """An order to store after the risk check: EXECUTING, or FAILED with its reason. Amounts in
    minor units.
    """

    payment_order_id: str
    checkout_id: str
    charge_id: str
    buyer_account: str
    seller_account: str
    amount: int
    currency: str
    requested_fee: int | None
    platform_fee: int
    status: str
    transition_reason: str
    failure_reason: str
    provider: str
    attempt_count: int


@dataclass(slots=True)
class NewAttempt:
    """An attempt that will be sent once the transaction is committed."""

    charge_id: str
    checkout_id: str
    provider: str
    provider_key: str
    amount: int
    currency: str


@dataclass(slots=True)
class OrderTransitionRow:
    """A transition of an order from `version`. It happens only from that version and under the
    charge's lease.
    """

    payment_order_id: str
    charge_id: str
    lease_token: int
    version: int
    status: str
    transition_reason: str
    booked: bool = False
    pending_reason: str = ""
    next_action_url: str = ""
    failure_reason: str = ""
    decline_code: str = ""
    provider_reference: str = ""
    resolve_within_seconds: float | None = None
    """Seconds until an order that now waits for something else must be resolved; None: no limit."""


_FIND_EXISTING = text("""
    select 'checkout' as resource_type, checkout_id as id, checkout_id, owner, fingerprint
    from checkout where checkout_id = any (cast(:checkouts as text[]))
    union all
    select 'order', o.payment_order_id, o.checkout_id, c.owner, null
    from payment_order o join checkout c on c.checkout_id = o.checkout_id
    where o.payment_order_id = any (cast(:orders as text[]))
""")


def find_existing(
    connection: Connection, checkout_ids: list[str], order_ids: list[str]
) -> Sequence[Row[Any]]:
    """Which of the ids exist: rows of resource_type ("checkout" or "order"), id, checkout_id,
    owner, fingerprint.
    """
    return connection.execute(
        _FIND_EXISTING, {"checkouts": checkout_ids, "orders": order_ids}
    ).all()


_COUNT_RECENT_ORDERS = text("""
    select b.buyer, (
        select count(*) from payment_order o where o.buyer_account = b.buyer
            and o.create_time > (select clock()) - cast(:window as interval)) as orders
    from unnest(cast(:buyers as text[])) as b (buyer)
""")


def count_recent_orders(
    connection: Connection, buyers: list[str], window_seconds: float
) -> dict[str, int]:
    """Each buyer's number of orders within the last `window_seconds` seconds."""
    result = connection.execute(
        _COUNT_RECENT_ORDERS, {"buyers": buyers, "window": f"{window_seconds} seconds"}
    )
    return {row.buyer: row.orders for row in result}


# Only rows that the first insert returns are stored. If another process stored a checkout
# meanwhile, nothing else of it is inserted.
_INSERT = text(f"""
    with t as materialized (select clock() as now),
    new_checkout as (
        insert into checkout (checkout_id, caller, owner, fingerprint, buyer_info, seller_info,
            buyer_country, payment_token, payment_method_type, charge_mode,
            partial_failure_policy, provider, traceparent, expire_time, cancel_reason, order_count,
                open_orders,
                unpaid_orders, version, create_time, done_time)
        select checkout_id, caller, owner, decode(fingerprint, 'hex'), buyer_info, seller_info,
            buyer_country, payment_token, payment_method_type, charge_mode,
            partial_failure_policy, provider, traceparent, expire_time, '', order_count,
                open_orders,
                order_count,
            case when open_orders = 0 then 2 else 1 end, now, case when open_orders = 0 then now end
        from json_to_recordset(cast(:checkouts as json))
            as r (checkout_id text collate "C", caller text, owner text, fingerprint text,
            buyer_info text, seller_info text,
            buyer_country text, payment_token text, payment_method_type text, charge_mode text,
                partial_failure_policy text, provider text, traceparent text,
            expire_time timestamptz, order_count int, open_orders int), t
        order by checkout_id
        on conflict do nothing returning checkout_id, version, create_time),
    requested as materialized (
        select r.* from json_to_recordset(cast(:orders as json))
            as r (payment_order_id text collate "C", checkout_id text collate "C",
            charge_id text collate "C", buyer_account text,
            seller_account text, amount bigint, currency text, requested_fee bigint,
                platform_fee bigint, status text, transition_reason text, failure_reason text,
            provider text, attempt_count int)
        join new_checkout c on c.checkout_id = r.checkout_id),
    new_order as (
        insert into payment_order (payment_order_id, checkout_id, charge_id, buyer_account,
            seller_account, amount, currency, requested_fee, platform_fee,
            seller_amount, status, wallet_updated, ledger_updated, pending_reason, next_action_url,
                failure_reason, decline_code, provider,
            provider_reference, attempt_count, version, create_time, update_time)
        select payment_order_id, checkout_id, charge_id, buyer_account, seller_account, amount,
            currency, requested_fee, platform_fee,
            amount - platform_fee, status, false, false, '', '', failure_reason, '', provider, '',
                attempt_count, 2, now, now
        from requested, t order by payment_order_id),
    history as (
        insert into order_history (payment_order_id, version, from_status, to_status,
            transition_reason,
            wallet_updated, ledger_updated, delivered, pending_reason,
            next_action_url, failure_reason, decline_code, provider_reference, attempt_count,
                create_time)
        select payment_order_id, 1, null, :first_status, :first_transition_reason, false, false,
            false, '', '',
            '', '', '', 0, now from requested, t
        union all
        select payment_order_id, 2, :first_status, status, transition_reason, false, false, false,
            '', '',
            failure_reason, '', '', attempt_count, now from requested, t),
    new_attempt as (
        insert into attempt (operation_id, attempt_number, checkout_id, provider, provider_key,
            amount,
            currency, outcome, provider_reference, failure_reason,
            decline_code, start_time)
        select charge_id, 1, r.checkout_id, provider, provider_key, amount, currency, '', '', '',
            '', now
        from json_to_recordset(cast(:attempts as json))
            as r (charge_id text collate "C", checkout_id text collate "C", provider text,
            provider_key text, amount bigint,
            currency text) join new_checkout c on c.checkout_id = r.checkout_id, t
        returning operation_id, provider),
    new_operation as (
        insert into operation (operation_id, provider, next_attempt_time, lease_until, lease_token,
            is_leased,
            maybe_sent, lookup_only, retry_reason, detail, phase_start_time)
        select operation_id, provider, now, now + cast(:lease as interval), 1, true, false, false,
            '',
            '', now from new_attempt, t),
    changed_resource as (
        select 'payments/' || checkout_id as aggregate_id, v as version
            from new_checkout c, generate_series(1, c.version) as v
        union all
        select 'paymentOrders/' || payment_order_id, v from requested, generate_series(1, 2) as v),
    {insert_into_outbox("changed_resource", "aggregate_id")}
    select checkout_id, create_time, version = 2 as closed, sequence as outbox_sequence
        from new_checkout, outbox_sequence
""")


def insert(
    connection: Connection,
    checkouts: Sequence[NewCheckout],
    orders: Sequence[NewOrder],
    attempts: Sequence[NewAttempt],
    lease_seconds: float,
) -> Sequence[Row[Any]]:
    """Stores checkouts with everything that belongs to them. Their charges are leased for
    `lease_seconds` seconds under lease token 1.

    Returns a row for each new checkout: checkout_id, create_time, closed, and the outbox row in
    which all stored rows are to be recorded.
    """
    parameters = {
        "checkouts": encode_rows(checkouts),
        "orders": encode_rows(orders),
        "attempts": encode_rows(attempts),
        "lease": f"{lease_seconds} seconds",
        "first_status": OrderStatus.NOT_STARTED,
        "first_transition_reason": PaymentTransitionReason.CREATED,
    }
    return connection.execute(_INSERT, parameters).all()


_LOAD_REQUEST = text("""
    select c.checkout_id, c.caller, c.owner, c.buyer_info, c.seller_info, c.buyer_country,
        c.payment_token, c.payment_method_type, c.charge_mode, c.partial_failure_policy,
        c.expire_time, o.payment_order_id, o.buyer_account, o.seller_account, o.amount, o.currency,
            o.requested_fee
    from checkout c join payment_order o on o.checkout_id = c.checkout_id
    where c.checkout_id = :checkout_id order by o.payment_order_id
""")


def load_request(connection: Connection, checkout_id: str) -> Sequence[Row[Any]]:
    """The stored request of a checkout, one row per order."""
    return connection.execute(_LOAD_REQUEST, {"checkout_id": checkout_id}).all()


# Lookups by key in a lateral "limit 1" stay lookups. `operation` is small and its statistics are
# always outdated, so a join read the whole table once per transition.
_TRANSITION_ORDERS = text(f"""
    with claimed as materialized (
        select r.*, op.holds_lease
        from (select * from json_to_recordset(cast(:transitions as json))
            as r (payment_order_id text collate "C", charge_id text collate "C", lease_token bigint,
            version int,
                status text, transition_reason text, booked boolean, pending_reason text,
                    next_action_url text,
                    failure_reason text, decline_code text,
                provider_reference text, resolve_within_seconds float) order by charge_id) r
        -- a lease that was taken over is no longer ours; an outcome applies under any lease
        cross join lateral (
            select op.lease_token = r.lease_token as holds_lease from operation op
            where op.operation_id = r.charge_id
                and (op.lease_token = r.lease_token or r.transition_reason = :outcome_reason)
                    limit 1 for update) op),
    leased as materialized (select * from claimed where holds_lease),
    -- an operation with a recorded outcome is due at once, even when its holder gives it back
    requeued as (
        update operation op set next_attempt_time = clock(), has_changed = true
        where op.operation_id = any (array(select charge_id from claimed where not holds_lease
            except select charge_id from leased)) and op.next_attempt_time is not null),
    locked_checkout as materialized (
        select c.checkout_id from checkout c
        where c.checkout_id in (select o.checkout_id from payment_order o
            join leased r on r.payment_order_id = o.payment_order_id
                                where r.booked or r.status = 'FAILED')
        order by c.checkout_id for update),
    locked as materialized (
        select r.*, o.status as from_status
        -- after the checkouts, as everywhere
        from (select * from leased where (select count(*) from locked_checkout) >= 0
              order by payment_order_id) r
        cross join lateral (
            select o.status from payment_order o where o.payment_order_id = r.payment_order_id
                and o.version = r.version limit 1 for update) o),
    changed as (
        update payment_order o set status = l.status, wallet_updated = l.booked,
            ledger_updated = l.booked, pending_reason = l.pending_reason,
            next_action_url = l.next_action_url, failure_reason = l.failure_reason,
                decline_code = l.decline_code,
            provider_reference = case when l.provider_reference = '' then o.provider_reference
                else l.provider_reference end,
            -- it is already waiting
            resolve_by_time = case when l.pending_reason <> ''
                and o.pending_reason = l.pending_reason then o.resolve_by_time
                else clock() + make_interval(secs => l.resolve_within_seconds) end,
                    version = o.version + 1,
                    update_time = greatest(o.update_time, clock())
        from locked l where o.payment_order_id = l.payment_order_id and o.version = l.version
        returning o.*, l.from_status, l.transition_reason, l.booked, l.lease_token),
    history as (
        insert into order_history (payment_order_id, version, from_status, to_status,
            transition_reason,
            wallet_updated, ledger_updated, delivered, pending_reason,
            next_action_url, failure_reason, decline_code, provider_reference, attempt_count,
                resolve_by_time, create_time)
        select payment_order_id, version, from_status, status, transition_reason, wallet_updated,
            ledger_updated, false, pending_reason, next_action_url,
            failure_reason, decline_code, provider_reference, attempt_count, resolve_by_time,
                update_time from changed),
    counted as (
        update checkout c set open_orders = c.open_orders - n.ended,
            unpaid_orders = c.unpaid_orders - n.paid,
            version = case when c.open_orders = n.ended then 2 else 1 end, done_time = case
                when c.open_orders = n.ended then n.at end
        from (select checkout_id, count(*) as ended, count(*) filter (where booked) as paid,
            max(update_time) as at
              from changed where booked or status = 'FAILED' group by checkout_id) n
        where c.checkout_id = n.checkout_id
        returning c.checkout_id, c.version),
    done as (
        delete from operation op
            where op.operation_id = any (array(select charge_id from locked
            where booked or status = 'FAILED'))),
    changed_resource as (
        select 'paymentOrders/' || payment_order_id as aggregate_id, version from changed
        union all
        select 'payments/' || checkout_id, 2 from counted where version = 2),
    {insert_into_outbox("changed_resource", "aggregate_id")}
    select payment_order_id, lease_token, checkout_id, version, update_time, resolve_by_time,
        sequence as outbox_sequence from changed, outbox_sequence
    union all
    select null, null, checkout_id, 2, null, null, sequence from counted, outbox_sequence
        where version = 2
""")


def transition_orders(
    connection: Connection, transitions: Sequence[OrderTransitionRow]
) -> Sequence[Row[Any]]:
    """Applies transitions of orders. Closes their checkouts and operations where they are final. A
    charge whose outcome changes nothing, because another process holds its lease, is due at once.

    Returns a row for each order that changed: its ids, its lease, its new version, update_time and
    resolve_by_time, and the outbox row in which all changes are recorded. It also returns a row
    without payment_order_id for each payment that was closed. A missing order had lost its lease or
    had already changed.
    """
    return connection.execute(
        _TRANSITION_ORDERS,
        {
            "transitions": encode_rows(transitions),
            "outcome_reason": PaymentTransitionReason.PROVIDER_OUTCOME,
        },
    ).all()


_CANCEL = text(
    "update checkout set cancel_reason = :reason where checkout_id = :checkout_id and open_orders "
    "> 0 and cancel_reason = ''"
)
_CANCEL_DUE = text("""
    with l as materialized (
        select operation_id from operation
        where operation_id in (select charge_id from payment_order where checkout_id = :checkout_id
            and status in ('EXECUTING', 'PENDING'))
        order by operation_id for update)
    update operation op set next_attempt_time = clock(), has_changed = true from l
        where op.operation_id = l.operation_id and op.next_attempt_time is not null
""")
_LIST_OPEN_CHARGES = text(
    "select distinct charge_id from payment_order where checkout_id = :checkout_id and status in "
    "('EXECUTING', 'PENDING') order by charge_id"
)
_CANCEL_REASON = text("select cancel_reason from checkout where checkout_id = :checkout_id")


def cancel(connection: Connection, checkout_id: str, reason: str) -> tuple[str, bool]:
    """Records the cancellation of a payment that is open and not yet cancelled. Its charges become
    due, except dead-lettered ones, which are only locked.

    Returns the reason that is stored now ("" if the payment had already ended), and whether this
    call stored it.
    """
    connection.execute(_CANCEL_DUE, {"checkout_id": checkout_id})
    updated = connection.execute(_CANCEL, {"checkout_id": checkout_id, "reason": reason}).rowcount
    return str(connection.execute(_CANCEL_REASON, {"checkout_id": checkout_id}).scalar_one()), bool(
        updated
    )


def list_open_charges(connection: Connection, checkout_id: str) -> list[str]:
    """The charges of a payment that are not final."""
    return list(connection.execute(_LIST_OPEN_CHARGES, {"checkout_id": checkout_id}).scalars())


_CHARGE = """
    select o.*, c.caller, c.owner, c.payment_token, c.payment_method_type, c.traceparent,
        a.attempt_number,
        a.provider_key, a.outcome, a.moved_amount, a.moved_currency,
        a.provider_reference as attempt_reference, a.failure_reason as attempt_reason,
            a.decline_code as attempt_code,
        extract(epoch from clock() - a.start_time) as age,
            extract(epoch from c.expire_time - clock()) as expires_in, c.cancel_reason,
        extract(epoch from o.resolve_by_time - clock()) as resolves_in,
        coalesce(op.maybe_sent, false) as maybe_sent,
            extract(epoch from clock() - op.sent_time) as since_sent,
        coalesce(op.not_found_count, 0) as not_found_count,
            coalesce(op.lookup_only, false) as lookup_only, op.retry_counts
    from unnest(cast(:charges as text[])) as g (id)
    {operation} op on op.operation_id = g.id
    join lateral (select * from attempt a where a.operation_id = g.id order by attempt_number desc
        limit 1) a
        on true
    join checkout c on c.checkout_id = a.checkout_id
    join payment_order o on o.checkout_id = c.checkout_id and o.charge_id = g.id and {which}
    order by o.charge_id, o.payment_order_id
"""
_LOAD_CHARGES = text(_CHARGE.format(operation="join operation", which="o.status <> 'FAILED'"))
# orders that the risk check did not reject
_LOAD_FAILED_CHARGES = text(
    _CHARGE.format(
        operation="left join operation", which="o.status = 'FAILED' and o.attempt_count > 0"
    )
)


def load_charges(connection: Connection, charge_ids: list[str]) -> Sequence[Row[Any]]:
    """The orders of charges to work on, with the data that the next action needs. `age` of the
    attempt is in seconds.
    """
    return connection.execute(_LOAD_CHARGES, {"charges": charge_ids}).all()


def load_failed_charges(connection: Connection, charge_ids: list[str]) -> Sequence[Row[Any]]:
    """The orders of failed charges, in the same form."""
    return connection.execute(_LOAD_FAILED_CHARGES, {"charges": charge_ids}).all()


@dataclass(slots=True)
class NextPoll:
    """When to poll a failed charge next, in seconds (None: never again), and the number of polls so
    far.
    """

    charge_id: str
    delay_seconds: float | None
    poll_count: int


_SCHEDULE_POLLS = text("""
    insert into failed_charge_poll (charge_id, provider, next_poll_time, poll_count)
    select r.charge_id, a.provider, clock() + make_interval(secs => r.delay_seconds), r.poll_count
    from json_to_recordset(cast(:polls as json))
        as r (charge_id text collate "C", delay_seconds float, poll_count int)
    join attempt a on a.operation_id = r.charge_id and a.attempt_number = 1 order by r.charge_id
    on conflict (charge_id) do update set next_poll_time = excluded.next_poll_time,
        poll_count = excluded.poll_count
""")
_LIST_POLLABLE = text("""
    select charge_id, poll_count from failed_charge_poll where next_poll_time <= (select clock())
        and provider = any (cast(:providers as text[]))
    order by next_poll_time, charge_id limit :limit
""")
_STOP_POLLS = text("delete from failed_charge_poll where charge_id = any (cast(:ids as text[]))")


def schedule_polls(connection: Connection, polls: Sequence[NextPoll]) -> None:
    """Schedules polls of failed charges, or ends them."""
    connection.execute(
        _SCHEDULE_POLLS,
        {"polls": encode_rows([poll for poll in polls if poll.delay_seconds is not None])},
    )
    connection.execute(
        _STOP_POLLS, {"ids": [poll.charge_id for poll in polls if poll.delay_seconds is None]}
    )


def list_pollable(connection: Connection, providers: Sequence[str], limit: int) -> dict[str, int]:
    """Failed charges of these providers that are due for a poll, and the number of polls so far."""
    return {
        row.charge_id: row.poll_count
        for row in connection.execute(
            _LIST_POLLABLE, {"providers": list(providers), "limit": limit}
        )
    }


# The orders that have waited longer than the limit, the longest first.
_WAITING_ORDERS = """
    (select operation_id, retry_reason from operation
     where phase = '{phase}' and phase_start_time < (select clock()) - cast(:{limit} as interval)
         and next_attempt_time is not null
     order by phase_start_time limit :max_scanned) d
    cross join lateral (select a.checkout_id from attempt a where a.operation_id = d.operation_id
        and a.attempt_number = 1 offset 0) a
    cross join lateral (
        select o.* from payment_order o where o.checkout_id = a.checkout_id
            and o.charge_id = d.operation_id and o.status <> 'FAILED' offset 0) o
"""
_STUCK_ORDERS = f"""
    select 'paymentOrders/' || o.payment_order_id as resource_name,
        o.status || ' since ' || to_char(o.update_time, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
            || case when d.retry_reason = '' then '' else ': ' || d.retry_reason end as detail
    from {_WAITING_ORDERS}
    where o.update_time < (select clock()) - case o.status when 'EXECUTING'
        then cast(:executing as interval) when 'PENDING' then cast(:pending as interval)
        else cast(:success as interval) end
"""
_ALERT_QUERIES = (
    (
        AlertKind.ORDER_STUCK,
        "paymentOrders",
        " union all ".join(
            f"({_STUCK_ORDERS.format(phase=phase, limit=limit)})"
            for phase, limit in (
                ("", "executing"),
                ("PENDING", "pending"),
                ("REVIEW", "pending"),
                ("SUCCESS", "success"),
            )
        ),
    ),
    (
        AlertKind.REVIEW_OVERDUE,
        "paymentOrders",
        f"""
    select 'paymentOrders/' || o.payment_order_id as resource_name, o.pending_reason as detail
        from {_WAITING_ORDERS.format(phase="REVIEW", limit="review")}
    where o.pending_reason not in ('', 'BUYER_ACTION')
        and o.update_time < (select clock()) - cast(:review as interval)
""",
    ),
    (
        AlertKind.UNAPPLIED_CHARGE,
        "unappliedCharges",
        """
    select 'unappliedCharges/' || unapplied_charge_id as resource_name, cause as detail
        from unapplied_charge where acknowledged_by = ''
    order by create_time desc, unapplied_charge_id desc
""",
    ),
    (
        AlertKind.CHARGE_STATUS_CONFLICT,
        "charges",
        """
    select 'charges/' || charge_id as resource_name,
        string_agg(report, '; ' order by number) as detail
        from conflicting_report where acknowledged_by = ''
    group by charge_id order by charge_id
""",
    ),
    (
        AlertKind.RELEASE_STUCK,
        "paymentOrders",
        """
    (select 'paymentOrders/' || payment_order_id as resource_name, rejection_message as detail
        from pending_release
        where rejection_message <> '')
    union all
    (select 'paymentOrders/' || payment_order_id, 'the wallet was not told' from pending_release
     where rejection_message = '' and create_time < (select clock()) - cast(:success as interval)
         order by create_time, payment_order_id)
""",
    ),
)


def alert_queries(
    alert_after_seconds: Mapping[str, float], review_seconds: float, max_event_delay_seconds: float
) -> Sequence[AlertQuery]:
    """The alerts of this service. All limits are in seconds: `alert_after_seconds` that an order
    may stay in a status, `review_seconds` that a review may take, and `max_event_delay_seconds`
    that an event may wait to be published.
    """
    limits = {
        str(status): alert_after_seconds[status]
        for status in (OrderStatus.EXECUTING, OrderStatus.PENDING, OrderStatus.SUCCESS)
    }
    return operation_alert_queries(
        _ALERT_QUERIES, "charges", {**limits, "review": review_seconds}, max_event_delay_seconds
    )
