"""Checkouts, orders, history, unapplied charges."""

from tallystick_core.operations.kind import KindName
from tallystick_storage.migrations import create
from tallystick_storage.migrations.rules import (
    changes_without_event,
    require_change,
    require_event,
    statement_rule,
)
from tallystick_storage.migrations.shared_tables import (
    ALERTS,
    OUTBOX,
    SHARED_CHANGE_SELECTS,
    WEBHOOK_EVENTS,
    conflicting_reports,
    dead_letters,
    operations,
)

revision = "payment_0001"
down_revision = None
branch_labels = ("payment",)
depends_on = None

_KINDS = (KindName.CHARGE, KindName.WEBHOOK_EVENT)

TABLES = """
create table checkout (
    checkout_id text collate "C" primary key,
    caller text collate "C" not null,
    owner text collate "C" not null,  -- the owner whose callers see it
    fingerprint bytea not null check (length(fingerprint) = 32),
    buyer_info text not null,
    seller_info text not null,
    buyer_country text not null,
    payment_token text not null,  -- issued by the provider; sent only to the provider
    payment_method_type text not null
        check (payment_method_type in ('CARD', 'APPLE_PAY', 'GOOGLE_PAY', 'BANK_TRANSFER', 'CASH')),
    charge_mode text not null check (charge_mode in ('PER_ORDER', 'COMBINED')),
    partial_failure_policy text not null
        check (partial_failure_policy in ('KEEP_SUCCEEDED', 'ALL_OR_NOTHING')),
    traceparent text not null,
    expire_time timestamptz,
    cancel_reason text not null,  -- why its caller cancelled it; "": not cancelled
    order_count int not null check (order_count between 1 and 200),
    open_orders int not null check (open_orders >= 0),  -- not final, or SUCCESS and not booked
    -- not (SUCCESS and booked)
    unpaid_orders int not null
        check (unpaid_orders >= open_orders and unpaid_orders <= order_count),
    is_payment_done boolean not null generated always as (unpaid_orders = 0) stored,
    payment_state text not null generated always as (
        case when open_orders > 0 then 'OPEN' when unpaid_orders = 0 then 'PAID'
             when unpaid_orders = order_count then 'FAILED' else 'PARTIALLY_PAID' end) stored,
    -- 1 created, 2 final
    version int not null check (version = case when open_orders = 0 then 2 else 1 end),
    create_time timestamptz not null,
    done_time timestamptz check ((done_time is null) = (open_orders > 0))
) with (fillfactor = 45);  -- free space for HOT updates: becoming final changes no index
create index checkout_by_owner on checkout (owner, create_time desc, checkout_id desc);
create index checkout_by_time on checkout (create_time desc, checkout_id desc);

-- The hosted pages on which buyers pay, as their callers requested them.
create table hosted_page (
    checkout_id text collate "C" primary key references checkout,
    success_url text not null check (success_url <> ''),
    cancel_url text not null check (cancel_url <> ''),
    requested_expire_time timestamptz,  -- null: as configured; the checkout has the result
    locale text not null,
    return_url text not null check (return_url <> '')  -- where the provider sends the buyer back
);

-- The links to the status pages of buyers. A token is found by its hash alone, so that no answer
-- takes longer because a part of a token is right.
create table status_link (
    checkout_id text collate "C" primary key references checkout,
    token_hash bytea not null unique check (length(token_hash) = 32),
    status_url text not null check (status_url <> ''),
    create_time timestamptz not null,
    expire_time timestamptz not null check (expire_time > create_time),
    revoke_time timestamptz check (revoke_time >= create_time)
);

-- The payments that are not PAID, by state. An index on the checkout itself would change when it
-- becomes final. Maintained by a trigger.
create table checkout_unpaid (
    checkout_id text collate "C" primary key,
    owner text collate "C" not null,
    payment_state text not null,
    create_time timestamptz not null
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
create index checkout_unpaid_by_time
    on checkout_unpaid (payment_state, create_time desc, checkout_id desc);
create index checkout_unpaid_by_owner
    on checkout_unpaid (owner, payment_state, create_time desc, checkout_id desc);

-- The owners of sellers as WalletService last reported them, for use when it does not answer.
create table seller_owner (
    seller_account text collate "C" primary key,
    owner text not null check (owner <> ''),
    update_time timestamptz not null
);

create table payment_order (
    payment_order_id text collate "C" primary key,
    checkout_id text collate "C" not null,
    charge_id text collate "C" not null,
    buyer_account text collate "C" not null,
    seller_account text collate "C" not null check (seller_account <> buyer_account),
    amount bigint not null check (amount between 1 and 999999999999999999),
    currency text not null,
    requested_fee bigint,  -- the fee as the caller gave it; null: as configured
    platform_fee bigint not null check (platform_fee >= 0),
    -- P9
    seller_amount bigint not null
        check (seller_amount > 0 and seller_amount + platform_fee = amount),
    -- P8: money of the buyer that the provider took, gave back, and holds for open disputes. Today
    -- an order is captured as a whole when it becomes SUCCESS.
    captured_amount bigint not null default 0,
    refunded_amount bigint not null default 0,
    disputed_amount bigint not null default 0,
    constraint refunds_are_captured check (
        refunded_amount >= 0 and disputed_amount >= 0
        and refunded_amount + disputed_amount <= captured_amount
        and captured_amount = case when status = 'SUCCESS' then amount else 0 end),
    status text not null
        check (status in ('NOT_STARTED', 'EXECUTING', 'SUCCESS', 'FAILED', 'PENDING')),
    wallet_updated boolean not null,
    ledger_updated boolean not null,
    pending_reason text not null check (pending_reason = ''
        or pending_reason in ('BUYER_ACTION', 'PROVIDER_REVIEW', 'RISK_REVIEW')
            and status in ('PENDING', 'NOT_STARTED')),
    next_action_url text not null,
    failure_reason text not null
        check ((failure_reason = '') = (status <> 'FAILED') and failure_reason in (
        '', 'PROVIDER_DECLINED', 'INSUFFICIENT_FUNDS', 'PAYMENT_METHOD_INVALID',
            'AUTHENTICATION_FAILED', 'PAGE_EXPIRED', 'EXPIRED', 'BUYER_CANCELLED',
        'CALLER_CANCELLED', 'RISK_AMOUNT_LIMIT', 'RISK_VELOCITY', 'RISK_BLOCKED_ACCOUNT',
            'RISK_BLOCKED_COUNTRY', 'RISK_PROVIDER', 'PROVIDER_MISMATCH',
        'PROVIDER_REJECTED', 'PROVIDER_UNREACHABLE', 'SIBLING_FAILED', 'CLOSED_BY_OPERATOR')),
    decline_code text not null,
    provider text not null,  -- that of the last attempt of its charge
    provider_reference text not null check (provider_reference <> '' or status <> 'SUCCESS'),  -- P2
    attempt_count int not null
        check (attempt_count >= 0 and (attempt_count > 0 or status in ('NOT_STARTED', 'FAILED'))),
    -- no review has one
    resolve_by_time timestamptz
        check (resolve_by_time is null or status = 'PENDING' and pending_reason = 'BUYER_ACTION'),
    delivery_confirmed_time timestamptz
        check (delivery_confirmed_time is null or wallet_updated and ledger_updated),
    version int not null,
    create_time timestamptz not null,
    update_time timestamptz not null,
    check (status = 'SUCCESS' or not (wallet_updated or ledger_updated))
-- free space for HOT updates: transitions until it is booked change no index
) with (fillfactor = 45);
create index payment_order_by_checkout on payment_order (checkout_id);
create index payment_order_by_buyer
    on payment_order (buyer_account, create_time desc, checkout_id desc);
create index payment_order_by_seller
    on payment_order (seller_account, create_time desc, checkout_id desc);

alter table attempt add checkout_id text collate "C" not null;

-- P1: money that a provider charged under one reference belongs to one charge: to its orders, or as
-- unapplied. Each writer claims the reference here. Of two simultaneous charges the second waits
-- for the first and is rejected. Maintained by triggers.
create table provider_money (
    provider text not null,
    provider_reference text collate "C" not null,
    charge_id text collate "C" not null,
    primary key (provider, provider_reference)
);

-- The order after each transition.
create table order_history (
    payment_order_id text collate "C" not null,
    version int not null check (version > 0),
    from_status text,
    to_status text not null,
    transition_reason text not null,
    wallet_updated boolean not null,
    ledger_updated boolean not null,
    delivered boolean not null,
    captured_amount bigint not null default 0,
    refunded_amount bigint not null default 0,
    disputed_amount bigint not null default 0,
    pending_reason text not null,
    next_action_url text not null,
    failure_reason text not null,
    decline_code text not null,
    provider_reference text not null,
    attempt_count int not null,
    resolve_by_time timestamptz,
    create_time timestamptz not null,
    primary key (payment_order_id, version)
);

-- Orders with a confirmed delivery, until the wallet has released their money.
create table pending_release (
    payment_order_id text collate "C" primary key,
    caller text not null,
    rejection_message text not null,  -- why the wallet last rejected it; "": not rejected
    create_time timestamptz not null,
    retry_count int not null default 0 check (retry_count >= 0),  -- rejections by the wallet
    next_try_time timestamptz not null default '-infinity'
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
create index pending_release_by_next_attempt
    on pending_release (next_try_time, create_time, payment_order_id);
create index pending_release_rejected on pending_release (create_time, payment_order_id)
    where rejection_message <> '';
create index pending_release_waiting on pending_release (create_time, payment_order_id)
    where rejection_message = '';

-- Money that a provider took and that fits no order.
create table unapplied_charge (
    unapplied_charge_id text collate "C" primary key,
    charge_id text collate "C" not null,
    checkout_id text collate "C" not null references checkout,
    caller text not null,
    traceparent text not null,
    provider text not null,
    provider_reference text collate "C" not null check (provider_reference <> ''),
    amount bigint not null check (amount > 0),
    currency text not null,
    cause text not null check (cause in ('MISMATCH', 'LATE', 'DUPLICATE_CHARGE')),
    ledger_updated boolean not null,
    version int not null check (version = case when acknowledged_by <> '' then 3 when ledger_updated
        then 2 else 1 end),
    create_time timestamptz not null,
    update_time timestamptz not null check (update_time >= create_time),
    -- the operator who resolved it; "": nobody yet
    acknowledged_by text not null default '' check (acknowledged_by = '' or ledger_updated),
    acknowledge_reason text not null default ''
        check ((acknowledge_reason <> '') = (acknowledged_by <> '')),
    acknowledge_time timestamptz check ((acknowledge_time is not null) = (acknowledged_by <> '')),
    unique (provider, provider_reference)
);
-- Unapplied charges that the ledger rejected. A row is deleted when its charge is booked.
create table booking_rejection (
    unapplied_charge_id text collate "C" primary key references unapplied_charge,
    rejection_message text not null check (rejection_message <> ''),  -- the last rejection
    retry_count int not null check (retry_count > 0),
    next_try_time timestamptz not null
);
create index unapplied_charge_by_time
    on unapplied_charge (create_time desc, unapplied_charge_id desc);
create index unapplied_charge_open on unapplied_charge (create_time desc, unapplied_charge_id desc)
    where acknowledged_by = '';
-- Attempts of charges that failed although they may have been sent, and attempts that a fallback
-- replaced. Their providers are polled in case they charged after all.
create table failed_charge_poll (
    charge_id text collate "C" not null,
    attempt_number int not null,
    provider text not null,
    next_poll_time timestamptz not null,
    poll_count int not null check (poll_count >= 0),
    primary key (charge_id, attempt_number)
);
create index failed_charge_poll_by_time
    on failed_charge_poll (next_poll_time, charge_id, attempt_number);
create index unapplied_charge_by_checkout on unapplied_charge (checkout_id);
create index unapplied_charge_unbooked on unapplied_charge (create_time, unapplied_charge_id)
    where not ledger_updated;
"""


def _claim_money_trigger(table: str, charge_id: str, event: str, condition: str) -> str:
    """P1: each row of a statement on a table claims the money that the provider charged for its
    charge, or is rejected. The second select sees what was committed while the first waited.
    """
    return f"""
create function {table}_claims_provider_money() returns trigger language plpgsql security definer
set search_path = payment, pg_temp set plan_cache_mode = force_generic_plan
    set enable_seqscan = off as $$
begin
    insert into provider_money (provider, provider_reference, charge_id)
    select a.provider, a.provider_reference, a.{charge_id} from changed a where {condition}
        order by a.provider, a.provider_reference collate "C"
    on conflict do nothing;
    if exists (select from changed a where {condition} and not exists (
            select from provider_money m where m.provider = a.provider
                and m.provider_reference = a.provider_reference
                and m.charge_id = a.{charge_id} offset 0)) then
        raise exception 'what the provider charged is the money of another charge'
            using errcode = '23505', constraint = 'provider_money_pkey';
    end if;
    return null;
end $$;
create trigger claims_provider_money after {event} on {table} referencing new table as changed
    for each statement execute function {table}_claims_provider_money();

"""


RULES = (
    """
-- P3: the same table as TRANSITIONS in core, and booking; each transition is one version.
create function reject_transition() returns trigger language plpgsql as $$
begin
    raise exception 'order % cannot go from % to %', old.payment_order_id, old.status, new.status
        using errcode = 'P0001';
end $$;

-- A link is replaced by a new one only after its end.
create trigger replaced_after_its_end before update on status_link for each row
    when (new.checkout_id <> old.checkout_id
        or old.revoke_time is not null and new.revoke_time is not null
        or new.token_hash <> old.token_hash and old.revoke_time is null
            and old.expire_time > new.create_time)
execute function reject_change();

create trigger cancelled_once before update on checkout for each row
    when (old.cancel_reason <> '' and new.cancel_reason <> old.cancel_reason)
execute function reject_change();

-- P3: a payment that has ended does not change; until then its counts only decrease.
create trigger closed_once before update on checkout for each row
when (old.open_orders = 0 or new.open_orders > old.open_orders
    or new.unpaid_orders > old.unpaid_orders) execute function reject_change();

create trigger follows_transitions before update on payment_order for each row
when (new.version <> old.version + 1 or new.update_time < old.update_time
    -- P8: no transition refunds or disputes yet
    or (new.refunded_amount, new.disputed_amount) <> (old.refunded_amount, old.disputed_amount)
    -- another provider only by a fallback: the next attempt
    or (new.provider <> old.provider or new.attempt_count <> old.attempt_count)
        and not (old.status = 'EXECUTING' and new.status = 'EXECUTING')
    or not (
    (old.status, new.status) in (
        ('NOT_STARTED', 'EXECUTING'), ('NOT_STARTED', 'FAILED'),
        ('EXECUTING', 'SUCCESS'), ('EXECUTING', 'FAILED'), ('EXECUTING', 'PENDING'),
        ('PENDING', 'SUCCESS'), ('PENDING', 'FAILED'))
    or (old.status = 'EXECUTING' and new.status = 'EXECUTING' and new.provider <> old.provider
        and new.attempt_count = old.attempt_count + 1)
    or (old.status = 'PENDING' and new.status = 'PENDING'  -- it waits for something else
        and (new.pending_reason, new.next_action_url, new.provider_reference, new.resolve_by_time)
            is distinct
                from (old.pending_reason, old.next_action_url, old.provider_reference,
                old.resolve_by_time))
    or (old.status = 'SUCCESS' and new.status = 'SUCCESS' and not old.wallet_updated
        and not old.ledger_updated
        and new.wallet_updated and new.ledger_updated and new.delivery_confirmed_time is null
            and new.provider_reference = old.provider_reference)
    or (old.status = 'SUCCESS' and new.status = 'SUCCESS' and old.wallet_updated
        and old.delivery_confirmed_time is null
        and new.wallet_updated and new.ledger_updated and new.delivery_confirmed_time is not null
            and new.provider_reference = old.provider_reference)))
execute function reject_transition();

"""
    # P4, E1: each version of an order has its history row, each history row has its event, and the
    # last history row equals the order.
    + statement_rule(
        "order_has_history",
        "payment_order",
        (
            """
            select from changed o where (
                exists (select from order_history h where h.payment_order_id = o.payment_order_id
                    and h.version = o.version and h.to_status = o.status
                            and h.wallet_updated = o.wallet_updated
                                and h.ledger_updated = o.ledger_updated
                            and h.delivered = (o.delivery_confirmed_time is not null)
                            and h.captured_amount = o.captured_amount
                            and h.refunded_amount = o.refunded_amount
                            and h.disputed_amount = o.disputed_amount
                            and h.resolve_by_time is not distinct from o.resolve_by_time offset 0)
                and (tg_op = 'UPDATE'
                    or exists (select from checkout c
                    where c.checkout_id = o.checkout_id offset 0))) is not true""",
            "an order changed without its history row or its checkout",
        ),
        on=("insert", "update"),
    )
    + statement_rule(
        "history_has_order",
        "order_history",
        (
            """
            select from changed h where (
                exists (select from payment_order o where o.payment_order_id = h.payment_order_id
                    and o.version >= h.version offset 0)
                and case when h.version = 1 then h.from_status is null else h.from_status = (
                    select p.to_status from order_history p
                        where p.payment_order_id = h.payment_order_id
                        and p.version = h.version - 1) end) is not true""",
            "a history row does not follow its order",
        ),
        (
            changes_without_event("'paymentOrders/' || payment_order_id"),
            "a change has no event",
        ),
    )
    + """
-- Booked, then acknowledged: each once, in separate versions.
create trigger booked_and_acknowledged_once before update on unapplied_charge for each row
    when (new.version <> old.version + 1)
    execute function reject_change();

"""
    # P6: a payment's counts match the states of its orders.
    + statement_rule(
        "checkout_counts_orders",
        "checkout",
        (
            """
            select from changed c
            cross join lateral (
                select count(*) filter (where o.status <> 'FAILED'
                    and not o.ledger_updated) as open,
                    count(*) filter (where not o.ledger_updated) as unpaid
                from payment_order o where o.checkout_id = c.checkout_id offset 0) o
            where (c.open_orders, c.unpaid_orders) <> (o.open, o.unpaid)""",
            "a payment does not count the orders that it has",
        ),
        on=("update",),
    )
    # P1: an attempt requests the sum of its charge's orders, in their one currency.
    + statement_rule(
        "attempt_covers_orders",
        "attempt",
        (
            """
            select from changed a
            left join lateral (
                select sum(o.amount) as amount, min(o.currency) as low, max(o.currency) as high,
                    min(o.checkout_id) as checkout_id
                from payment_order o where o.checkout_id = a.checkout_id
                    and o.charge_id = a.operation_id and o.status <> 'FAILED') o on true
            where a.kind = 'charge' and (o.amount, o.low, o.high, o.checkout_id) is distinct
                from (a.amount, a.currency, a.currency, a.checkout_id)""",
            "an attempt does not request the sum of its orders",
        ),
    )
    + _claim_money_trigger(
        "attempt", "operation_id", "update", "a.kind = 'charge' and a.outcome = 'SUCCEEDED'"
    )
    + _claim_money_trigger("unapplied_charge", "charge_id", "insert", "true")
    + """
create function unpaid_are_listed() returns trigger language plpgsql security definer
set search_path = payment, pg_temp set plan_cache_mode = force_generic_plan
    set enable_seqscan = off as $$
begin
    if tg_op = 'UPDATE' then
        delete from checkout_unpaid u
            where u.checkout_id = any (array(select c.checkout_id from changed c
            where c.payment_state = 'PAID'));
    end if;
    insert into checkout_unpaid as u (checkout_id, owner, payment_state, create_time)
    select c.checkout_id, c.owner, c.payment_state, c.create_time from changed c
        where c.payment_state <> 'PAID' order by c.checkout_id
    on conflict (checkout_id) do update set payment_state = excluded.payment_state
        where u.payment_state <> excluded.payment_state;
    return null;
end $$;
create trigger insert_unpaid_are_listed after insert on checkout referencing new table as changed
    for each statement execute function unpaid_are_listed();
create trigger update_unpaid_are_listed after update on checkout referencing new table as changed
    for each statement execute function unpaid_are_listed();

create trigger append_only before update or delete or truncate on order_history
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on payment_order
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on checkout
    for each statement execute function reject_change();
create trigger append_only before update or delete or truncate on hosted_page
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on status_link
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on unapplied_charge
    for each statement execute function reject_change();
"""
)

EVENTS = (
    require_change(
        {
            "paymentOrders": (
                "select from order_history h where h.payment_order_id = {id} and h.version = "
                "x.version"
            ),
            "payments": (
                "select from checkout c where c.checkout_id = {id} and x.version between 1 and "
                "c.version"
            ),
            **SHARED_CHANGE_SELECTS,
            "unappliedCharges": (
                "select from unapplied_charge u where u.unapplied_charge_id = {id} and u.version = "
                "x.version"
            ),
        }
    )
    + require_event(
        "checkout",
        "a checkout",
        "'payments/' || checkout_id",
        where="tg_op = 'INSERT' or version = 2",
    )
    + require_event(
        "unapplied_charge", "an unapplied charge", "'unappliedCharges/' || unapplied_charge_id"
    )
)

GRANTS = """
grant select on checkout_unpaid, provider_money to {service};
grant select, insert, update (owner, update_time) on seller_owner to {service};
grant select, insert on checkout, payment_order, order_history, unapplied_charge to {service};
grant select, insert on hosted_page, status_link to {service};
grant update (token_hash, status_url, create_time, expire_time, revoke_time)
    on status_link to {service};
grant update (ledger_updated, version, update_time, acknowledged_by, acknowledge_reason,
    acknowledge_time) on unapplied_charge to {service};
grant update (open_orders, unpaid_orders, version, done_time, cancel_reason)
    on checkout to {service};
grant update (status, captured_amount, wallet_updated, ledger_updated, pending_reason,
    next_action_url,
    failure_reason, decline_code, provider, provider_reference,
              attempt_count, resolve_by_time, delivery_confirmed_time, version, update_time)
                  on payment_order to {service};
grant select, insert, delete, update (rejection_message, retry_count, next_try_time)
    on pending_release,
    booking_rejection to {service};
grant select, insert, delete, update (next_poll_time, poll_count)
    on failed_charge_poll to {service};
"""

# recomputed from sealed history, payments, attempts and unapplied charges
UNSEALED = frozenset({"payment_order", "checkout_unpaid", "provider_money"})


def upgrade() -> None:
    create(
        "payment",
        operations(*_KINDS),
        TABLES,
        conflicting_reports("charge_id"),
        OUTBOX,
        dead_letters(*_KINDS),
        WEBHOOK_EVENTS,
        ALERTS,
        RULES,
        EVENTS,
        GRANTS,
        unsealed=UNSEALED,
    )
