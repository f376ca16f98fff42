"""The verify queries on payments: orders and their history, checkouts, attempts, and unapplied
charges.
"""

from __future__ import annotations

from tallystick_storage.verify.shared import (
    ALERTS_AND_DEAD_LETTERS,
    UNPUBLISHED_VERSIONS,
    VERSIONS,
    canonical_text,
    operations_query,
    seal_queries,
    to_microseconds,
)

INCONSISTENCY_QUERIES = {
    "payment.inconsistent_orders": """
        select 'payment.payment_order ' || o.payment_order_id as name, w.what
        from payment_order o left join order_history f on f.payment_order_id = o.payment_order_id
            and f.version = 1
        left join order_history l on l.payment_order_id = o.payment_order_id
            and l.version = o.version
        left join checkout c on c.checkout_id = o.checkout_id
        left join attempt a on a.kind = 'charge' and a.operation_id = o.charge_id
            and a.attempt_number = o.attempt_count
        cross join lateral (select case
            when o.create_time is distinct from f.create_time or o.create_time is distinct
                from c.create_time then 'was not created when its history says'
            when o.update_time is distinct from l.create_time
                then 'was not updated when its history says'
            when o.provider is distinct from coalesce(a.provider, '')
                then 'is of another provider than its last attempt'
            when (o.failure_reason, o.decline_code) is distinct
                from (l.failure_reason, l.decline_code)
                then 'failed for another reason than its history says'
            when (o.captured_amount, o.refunded_amount, o.disputed_amount) is distinct
                from (l.captured_amount, l.refunded_amount, l.disputed_amount)
                then 'was captured, refunded or disputed otherwise than its history says'
            when o.attempt_count is distinct from l.attempt_count
                then 'counts other attempts than its history'
            when (o.pending_reason, o.next_action_url) is distinct
                from (l.pending_reason, l.next_action_url)
                then 'waits for something else than its history says'
            when o.provider_reference is distinct from l.provider_reference
                then 'has another provider_reference than its history'
            when o.delivery_confirmed_time is distinct from case when l.delivered
                then l.create_time end then 'was not delivered when its history says'
            when o.requested_fee <> o.platform_fee then 'has another fee than was requested'
            when o.resolve_by_time is distinct from l.resolve_by_time
                then 'has another resolve_by_time than its history'
            when (o.resolve_by_time is not null) <> (o.status = 'PENDING'
                and o.pending_reason = 'BUYER_ACTION')
                then 'resolve_by_time is not of what it waits for'
            end as what) w
        where w.what is not null order by 1""",
    "payment.inconsistent_payments": f"""
        select 'payment.checkout ' || c.checkout_id || ' or a payment.payment_order of it' as name,
            'its content is not that of its fingerprint' as what
        from checkout c
        left join hosted_page h on h.checkout_id = c.checkout_id
        join (
            select o.checkout_id, string_agg({
        canonical_text(
            "o.payment_order_id",
            "o.buyer_account",
            "o.seller_account",
            "o.amount",
            "o.currency",
            "coalesce(o.requested_fee::text, '')",
        )
    }, '' order by o.payment_order_id) as lines
            from payment_order o group by o.checkout_id) o on o.checkout_id = c.checkout_id
        cross join lateral (
            select case when c.expire_time is null or h.checkout_id is not null then ''
                when isfinite(c.expire_time) then {to_microseconds("c.expire_time")}::text
                else 'never' end as micros) t
        cross join lateral (
            select case when h.checkout_id is null then '' else {
        canonical_text(
            "'hosted_page'",
            "h.success_url",
            "h.cancel_url",
            f"coalesce({to_microseconds('h.requested_expire_time')}::text, '')",
            "h.locale",
        )
    } end as page) p
        where c.fingerprint is distinct from sha256(convert_to({
        canonical_text(
            "c.checkout_id",
            "c.owner",
            "c.buyer_info",
            "c.seller_info",
            "c.buyer_country",
            "c.payment_token",
            "c.payment_method_type",
            "c.charge_mode",
            "c.partial_failure_policy",
            "t.micros",
        )
    } || o.lines || p.page, 'UTF8'))
            or h.requested_expire_time <> c.expire_time
            or h.checkout_id is not null and c.expire_time is null
        order by 1""",
    "payment.inconsistent_unpaid": """
        select 'payment.checkout_unpaid ' || checkout_id as name,
            'does not match its payment' as what
        from checkout_unpaid u full join (select * from checkout where payment_state <> 'PAID') c
            using (checkout_id)
        where (u.owner, u.payment_state, u.create_time) is distinct
            from (c.owner, c.payment_state, c.create_time) order by 1""",
    "payment.inconsistent_attempts": """
        select 'payment.attempt charge ' || o.charge_id as name,
            'has ' || coalesce(a.n, 0) || ' attempts, but its orders count ' || o.n as what
        from (select charge_id, max(attempt_count) as n from payment_order group by charge_id) o
        left join (select operation_id, count(*) as n from attempt where kind = 'charge'
            group by operation_id) a on a.operation_id = o.charge_id
        where o.n <> coalesce(a.n, 0) order by 1""",
    "payment.inconsistent_new_attempts": """
        select concat_ws(' ', 'payment.attempt', a.kind, a.operation_id, a.attempt_number) as name,
            'is not of its payment, or begins at another time' as what
        from attempt a left join checkout c on c.checkout_id = a.checkout_id
        where c.checkout_id is null
            or a.attempt_number = 1 and a.start_time <> c.create_time
            or a.attempt_number > 1 and a.start_time < c.create_time
            or right(a.provider_key, length(a.operation_id || a.attempt_number) + 1) <>
                a.operation_id || '-' ||
                a.attempt_number
        order by 1""",
    "payment.inconsistent_new_operations": """
        select 'payment.operation ' || op.kind || ' ' || op.operation_id as name,
            'does not match its payment' as what
        from operation op left join attempt a on a.kind = op.kind
            and a.operation_id = op.operation_id and a.attempt_number = 1
            left join checkout c on c.checkout_id = a.checkout_id
        where op.seal is null
            and (op.provider, op.next_try_time, op.phase_start_time, op.sent_time,
                op.phase) is distinct
                from (a.provider, c.create_time, c.create_time, null, '')
        order by 1""",
}
"""Finds rows inconsistent with other rows of the schema: each query returns a column `name` and one
`what`.
"""

QUERIES = {
    **seal_queries("payment"),
    "payment.checkout_count": "select count(*) as rows from checkout",
    "payment.order_count": "select count(*) as rows from payment_order",
    "payment.attempt_count": "select count(*) as rows from attempt",
    "payment.orders": """
        select payment_order_id, status, wallet_updated, ledger_updated, provider, buyer_account,
            seller_account, currency, amount, platform_fee, seller_amount, provider_reference
        from payment_order order by payment_order_id""",
    "payment.in_flight": """
        select distinct seller_account, currency collate "C" as currency from payment_order
            where status = 'SUCCESS' and not ledger_updated
        order by seller_account, currency""",
    "payment.inconsistent_history": """
        select 'payment.order_history ' || h.payment_order_id || ' ' || h.version as name,
            coalesce(h.from_status, 'None') || ' to ' || h.to_status || ' does not follow ' ||
                coalesce(h.before, 'None') as what
        from (
            select h.*, row_number() over w as number, lag(h.to_status) over w as before,
                lag(h.stage, 1, 0) over w as stage_before, lag(h.waits) over w as waited,
                lag(h.attempt_count) over w as attempts_before
            from (
                select payment_order_id, version, from_status, to_status, attempt_count,
                    -- booked, then delivered: each once, in separate versions
                    (wallet_updated and ledger_updated)::int + delivered::int as stage,
                    case when to_status = 'PENDING'
                        then pending_reason || ' ' || next_action_url || ' ' || provider_reference
                        end as waits
                from order_history) h
            window w as (partition by h.payment_order_id order by h.version)) h
        where (h.version = h.number and h.from_status is not distinct
            from h.before and (h.waits = h.waited) is not true
            and case when h.before is null then h.to_status = 'NOT_STARTED'
                else h.before || ' ' || h.to_status = any(:transitions)
                    and h.stage = h.stage_before + (h.before = 'SUCCESS'
                    and h.to_status = 'SUCCESS')::int
                    -- a fallback begins the next attempt
                    and (h.before <> 'EXECUTING' or h.attempt_count = h.attempts_before
                        + (h.to_status = 'EXECUTING')::int) end
            ) is not true
        order by h.payment_order_id, h.version""",
    "payment.inconsistent_ends": """
        select 'payment.payment_order ' || o.payment_order_id as name, w.what
        from payment_order o left join order_history h on h.payment_order_id = o.payment_order_id
            and h.version = o.version
            and h.to_status = o.status and h.wallet_updated = o.wallet_updated
                and h.ledger_updated = o.ledger_updated
            and h.delivered = (o.delivery_confirmed_time is not null)
        left join order_history n on n.payment_order_id = o.payment_order_id
            and n.version = o.version + 1
        cross join lateral (
            select o.captured_amount = case when o.status = 'SUCCESS' then o.amount else 0 end
                and o.refunded_amount >= 0 and o.disputed_amount >= 0
                and o.refunded_amount + o.disputed_amount <= o.captured_amount) m (is_covered)
        cross join lateral (values
            (case when h.version is null or n.version is not null then coalesce(
                (select 'is ' || o.status || ' at version ' || o.version ||
                    ', but its history ends in ' || l.to_status || ' at ' || l.version
                 from order_history l where l.payment_order_id = o.payment_order_id
                     order by l.version desc limit 1), 'has no history') end),
            (case when o.seller_amount + o.platform_fee <> o.amount or o.platform_fee < 0
                or o.seller_amount <= 0
                then 'seller''s share and fee do not sum to the amount' end),
            (case when not m.is_covered
                then 'its captured amount is not that of its status, or does not cover '
                    'what was refunded and disputed' end)) w (what)
        where (h.version is null or n.version is not null
            or o.seller_amount + o.platform_fee <> o.amount or o.platform_fee < 0
            or o.seller_amount <= 0 or not m.is_covered)
            and w.what is not null
        order by o.payment_order_id""",
    "payment.missing_orders": """
        select distinct 'payment.payment_order ' || h.payment_order_id as name,
            'has history and no order' as what
        from order_history h
            where not exists (select from payment_order o
            where o.payment_order_id = h.payment_order_id) order by name""",
    "payment.inconsistent_checkouts": """
        select 'payment.checkout ' || checkout_id as name, w.what
        from checkout c full join (
            select checkout_id, count(*) as n,
                count(*) filter (where not (status = 'SUCCESS' and wallet_updated
                and ledger_updated)) as unpaid,
                count(*) filter (where not (status = 'FAILED' or status = any(:final)
                    and wallet_updated and ledger_updated)) as open
            from payment_order group by checkout_id) o using (checkout_id)
        cross join lateral (values
            (case when c.version is null then 'has orders and no checkout' when o.n is null
                then 'has no orders'
                when (c.order_count, c.unpaid_orders, c.open_orders) <> (o.n, o.unpaid, o.open)
                    then format(
                    'counts %s unpaid and %s open orders; there are %s and %s', c.unpaid_orders,
                        c.open_orders, o.unpaid, o.open) end),
            (case when c.is_payment_done <> (o.unpaid = 0)
                then 'is_payment_done is not what its orders say' end)) w (what)
        where (c.order_count = o.n and c.unpaid_orders = o.unpaid and c.open_orders = o.open
            and c.is_payment_done = (o.unpaid = 0)) is not true
            and w.what is not null
        order by checkout_id""",
    "payment.inconsistent_charges": """
        select 'payment.attempt ' || a.kind || ' ' || a.operation_id as name, w.what
        from (select kind, operation_id, count(*) as n, min(attempt_number) as low,
            max(attempt_number) as high,
            count(*) filter (where is_live) as live,
            count(*) filter (where outcome = 'NOT_SENT' and end_time is not null) as replaced
              from attempt group by kind, operation_id) a
        cross join lateral (values
            (case when a.low <> 1 or a.high <> a.n
                then 'its attempts are not numbered 1, 2, …' end),
            (case when a.live > 1
                then 'has more than one attempt that is open or has succeeded' end),
            (case when a.replaced >= a.n
                then 'has no attempt that replaces its last one' end)) w (what)
        where (a.low <> 1 or a.high <> a.n or a.live > 1 or a.replaced >= a.n)
            and w.what is not null order by a.kind, a.operation_id""",
    "payment.inconsistent_attempt_amounts": """
        select concat_ws(' ', 'payment.attempt', a.kind, a.operation_id, a.attempt_number) as name,
            w.what
        from attempt a left join (
            select checkout_id, charge_id, sum(amount) as amount, min(currency) as low,
                max(currency) as high, count(*) as n,
                count(*) filter (where status = 'SUCCESS') as succeeded,
                    count(*) filter (where status in ('EXECUTING', 'PENDING')) as open
            from payment_order where attempt_count > 0 group by checkout_id, charge_id) o
                on o.checkout_id = a.checkout_id and o.charge_id = a.operation_id
        left join unapplied_charge u on u.provider = a.provider
            and u.provider_reference = a.provider_reference
        cross join lateral (values
            (case when (o.amount, o.low, o.high) is distinct from (a.amount, a.currency, a.currency)
                then format(
                'requests %s %s, but its orders sum to %s %s', a.amount, a.currency,
                    coalesce(o.amount::text, 'None'), coalesce(o.low, 'None')) end),
            -- the charged money belongs to its orders, is unapplied, or is not decided yet
            (case when a.outcome = 'SUCCEEDED'
                and not ((a.moved_amount, a.moved_currency) is not distinct
                    from (a.amount, a.currency) and coalesce(o.n in (o.succeeded, o.open), true))
                and coalesce(o.open <> o.n, false)
                    and (a.moved_amount, a.moved_currency) is distinct from (u.amount, u.currency)
                then 'took money that is no SUCCESS order''s share and no unapplied charge' end)) w
                    (what)
        where ((o.amount, o.low, o.high) is distinct from (a.amount, a.currency, a.currency)
            or a.outcome = 'SUCCEEDED'
                and ((a.moved_amount, a.moved_currency) is distinct from (a.amount, a.currency)
                    or o.n <> o.succeeded)) and w.what is not null
        order by a.kind, a.operation_id, a.attempt_number""",
    "payment.unpaid_successes": """
        select 'payment.payment_order ' || o.payment_order_id as name,
            'is SUCCESS without an attempt that succeeded' as what from payment_order o
        where o.status = 'SUCCESS' and not exists (
            select from attempt a where a.kind = 'charge' and a.operation_id = o.charge_id
                and a.outcome = 'SUCCEEDED'
                and (a.provider, a.provider_reference) = (o.provider, o.provider_reference))
        order by 1""",
    "payment.shared_references": """
        select 'payment.attempt ' || provider || ' ' || provider_reference as name,
            'is the money of ' || count(*) || ' charges' as what from (
            select provider, provider_reference, operation_id from attempt
                where outcome = 'SUCCEEDED'
            union select provider, provider_reference, charge_id from unapplied_charge) c
        group by provider, provider_reference having count(*) > 1
            order by provider, provider_reference""",
    "payment.inconsistent_money": """
        select 'payment.provider_money ' || coalesce(m.provider,
            c.provider) || ' ' || coalesce(m.provider_reference, c.provider_reference) as name,
            case when m.charge_id is null then 'is missing' when c.charge_id is null
                then 'names what no charge took'
                else 'names ' || m.charge_id || ', but ' || c.charge_id || ' took it' end as what
        from provider_money m full join (
            select provider, provider_reference, operation_id as charge_id from attempt
                where outcome = 'SUCCEEDED'
            union select provider, provider_reference, charge_id from unapplied_charge) c
            on m.provider = c.provider and m.provider_reference = c.provider_reference
        where m.charge_id is distinct from c.charge_id order by 1""",
    "payment.operations": operations_query("""
        select 'charge' as kind, charge_id as operation_id, min(payment_order_id) as open
        from payment_order
        where status <> 'FAILED'
            and not (status = 'SUCCESS' and wallet_updated and ledger_updated)
        group by charge_id"""),
    "payment.delivered": """
        select o.payment_order_id, r.payment_order_id is not null as waiting
        from payment_order o left join pending_release r on r.payment_order_id = o.payment_order_id
        where o.delivery_confirmed_time is not null order by o.payment_order_id""",
    "payment.unapplied": "select * from unapplied_charge order by unapplied_charge_id",
    "payment.versions": f"""
        select 'paymentOrders/' || payment_order_id as aggregate_id, {VERSIONS.format("version")}
            from order_history
            where create_time > cast(:since as timestamptz)
        group by payment_order_id, block order by payment_order_id, block""",
    # The version of each resource without a history of its own: the version of its last event.
    "payment.last_versions": f"""select * from ({ALERTS_AND_DEAD_LETTERS.format(schema="payment")}
        union all select 'payments/' || checkout_id, version, 'payment.checkout' from checkout
        union all select 'unappliedCharges/' || unapplied_charge_id, version,
            'payment.unapplied_charge' from unapplied_charge) v
        order by aggregate_id collate "C" """,
    "payment.outbox": UNPUBLISHED_VERSIONS,
    **INCONSISTENCY_QUERIES,
}
