"""The verify queries on wallets: their entries, holds, pending credits and policies, and seller
ownership.
"""

from __future__ import annotations

from tallystick_storage.verify.shared import ALERTS, UNPUBLISHED_VERSIONS, VERSIONS, seal_queries

INCONSISTENCY_QUERIES = {
    "wallet.inconsistent_holds": """
        select 'wallet.hold ' || e.source_id as name,
            'is not what wallet.wallet_entry says: placed for ' || e.amount as what
        from wallet_entry e left join hold h on h.hold_id = e.source_id
        left join wallet_entry n on n.kind in ('HOLD_CAPTURED', 'HOLD_RELEASED', 'HOLD_EXPIRED')
            and n.source_id = e.source_id
        where e.kind = 'HOLD_PLACED'
            and (h.seller_account, h.currency, h.amount, h.create_time, 'HOLD_' || h.state,
            h.end_time)
            is distinct
                from (e.seller_account, e.currency, e.amount, e.create_time,
                coalesce(n.kind, 'HOLD_OPEN'), n.create_time)
        union all
        select 'wallet.hold ' || h.hold_id, 'was never placed'
        from hold h where h.state <> 'TOMBSTONE'
            and not exists (select from wallet_entry e where e.kind = 'HOLD_PLACED'
            and e.source_id = h.hold_id)
        order by 1""",
    "wallet.inconsistent_sellers": """
        select 'wallet.seller_assignment of wallet.seller ' || s.seller_account as name,
            a.n || ' were approved since its first owner, but it is at version ' || s.version as
                what
        from seller s cross join lateral (
            select count(*) as n from seller_assignment a
            where a.seller_account = s.seller_account and a.state = 'APPROVED'
                and a.seller_version between 2 and s.version) a
        where a.n <> s.version - 1 order by 1""",
    "wallet.inconsistent_policies": """
        select 'wallet.wallet_policy of wallet.wallet ' || w.seller_account || ' ' || w.currency as
            name, 'the wallet does not match its policies' as what
        from wallet w left join wallet_policy p on p.seller_account = w.seller_account
            and p.currency = w.currency and p.version = w.policy_version
        left join wallet_entry e on e.seller_account = w.seller_account and e.currency = w.currency
            and e.number = w.version
        cross join lateral (
            select count(*) as n from wallet_policy n where n.seller_account = w.seller_account
                and n.currency = w.currency
                and n.version between 1 and w.policy_version) n
        where n.n <> w.policy_version or w.frozen is distinct from coalesce(p.frozen, false)
            or p.version is not null and w.release_delay is distinct from p.release_delay
            or w.update_time <> greatest(p.create_time, e.create_time)
        union all
        select 'wallet.wallet_policy ' || p.seller_account || ' ' || p.currency || ' ' || p.version,
            'is beyond its wallet'
        from wallet_policy p where not exists (
            select from wallet w where w.seller_account = p.seller_account
                and w.currency = p.currency and w.policy_version >= p.version)
        order by 1""",
}
"""Finds rows inconsistent with other rows of the schema: each query returns a column `name` and one
`what`.
"""

QUERIES = {
    **seal_queries("wallet"),
    "wallet.wallet_count": "select count(*) as rows from wallet",
    "wallet.balances": (
        "select seller_account, currency, balance from wallet order by seller_account, currency"
    ),
    "wallet.inconsistent_entries": """
        select 'wallet.wallet_entry ' || e.seller_account || ' ' || e.currency || ' ' || e.number as
            name, w.what
        from (
            select e.*, e.balance - lag(e.balance, 1, 0::numeric) over w as balance_change,
                lag(e.number, 1, 0::bigint) over w as number_before
            from (
                select seller_account, currency, number, kind, amount,
                    pending_after + available_after + held_after - owed_after as balance,
                    amount * ((kind = 'CREDIT')::int - (kind in ('DEBIT', 'HOLD_CAPTURED'))::int) as
                        change
                from wallet_entry) e
            window w as (partition by e.seller_account, e.currency order by e.number)) e
        cross join lateral (values
            (case when e.number <> e.number_before + 1
                then 'follows ' || e.number_before || ', with a gap' end),
            (case when e.balance_change <> e.change
                then 'moves the balance by ' || e.balance_change || ', which is not its ' || e.kind
                    || ' of '
                || e.amount end)) w (what)
        where (e.number = e.number_before + 1 and e.balance_change = e.change) is not true
            and w.what is not null
        order by e.seller_account, e.currency, e.number""",
    "wallet.inconsistent_wallets": """
        select 'wallet.wallet ' || w.seller_account || ' ' || w.currency as name, x.what
        from wallet w
        left join lateral (
            select e.number, e.pending_after, e.available_after, e.held_after, e.owed_after
                from wallet_entry e
            where e.seller_account = w.seller_account and e.currency = w.currency
                order by e.number desc limit 1) e on true
        left join (select seller_account, currency, sum(amount) as amount from hold
            where state = 'OPEN' group by seller_account, currency) h
            on h.seller_account = w.seller_account and h.currency = w.currency
        left join (select seller_account, currency, sum(amount) as amount from pending_credit
            group by seller_account, currency) p
            on p.seller_account = w.seller_account and p.currency = w.currency
        cross join lateral (values
            (case when (w.version, w.pending, w.available, w.held, w.owed) is distinct
                from (coalesce(e.number, 0), coalesce(e.pending_after, 0),
                    coalesce(e.available_after, 0), coalesce(e.held_after, 0),
                    coalesce(e.owed_after, 0))
                then format(
                    'is at version %s with (%s, %s, %s, %s), '
                    'but its last entry says (%s, %s, %s, %s, %s)',
                    w.version, w.pending, w.available, w.held, w.owed,
                    coalesce(e.number, 0), coalesce(e.pending_after, 0),
                    coalesce(e.available_after, 0), coalesce(e.held_after, 0),
                    coalesce(e.owed_after, 0))
                end),
            (case when least(w.pending, w.available, w.held, w.owed) < 0 or w.owed <> 0
                and w.available <> 0
                    or w.balance <> w.pending + w.available + w.held - w.owed
                then 'balance is not pending + available + held - owed, or a part is wrong' end),
            (case when w.held <> coalesce(h.amount, 0)
                then 'holds ' || w.held || ', but its open holds sum to ' || coalesce(h.amount,
                0) end),
            (case when w.pending <> coalesce(p.amount, 0)
                then 'has ' || w.pending || ' pending, but its pending credits sum to ' ||
                    coalesce(p.amount, 0) end)) x (what)
        where x.what is not null order by w.seller_account, w.currency""",
    "wallet.missing": """
        select distinct 'wallet.wallet ' || e.seller_account || ' ' || e.currency as name,
            'has entries and no wallet' as what
        from wallet_entry e
            where not exists (select from wallet w where w.seller_account = e.seller_account
            and w.currency = e.currency)
        order by name""",
    "wallet.inconsistent_pending": """
        select 'wallet.pending_credit ' || c.source_id as name,
            case when r.source_id is not null then 'is pending, but it was released'
                when e.amount is distinct from c.amount then 'is not what was credited'
                else 'is pending, although its release time has passed' end as what
        from pending_credit c left join wallet_entry e on e.kind = 'CREDIT'
            and e.source_id = c.source_id
        left join wallet_entry r on r.kind = 'RELEASE' and r.source_id = c.source_id
        where e.amount is distinct from c.amount or r.source_id is not null
            -- work was still done long after its release time
            or c.release_time < (select max(create_time) from commit_marker) - interval '10 minutes'
        order by c.source_id""",
    "wallet.pay_ins": """
        select substr(source_id, 8) as payment_order_id, seller_account, currency, amount
            from wallet_entry
        where kind = 'CREDIT' and source_id like 'PAY_IN/%' order by payment_order_id""",
    "wallet.pending_pay_ins": """
        select substr(source_id, 8) as payment_order_id from pending_credit
            where source_id like 'PAY_IN/%'
            order by payment_order_id""",
    "wallet.payout_holds": """
        select substr(hold_id, 9) as payout_id, seller_account, currency, amount, captured_amount,
            state
        from hold where purpose = 'PAYOUT' order by payout_id""",
    "wallet.payouts": """
        select source_id, seller_account, currency, case kind when 'DEBIT' then -amount
            else amount end as amount from wallet_entry
        where (kind = 'DEBIT' and source_id like 'PAYOUT/%')
            or (kind = 'CREDIT' and starts_with(source_id, 'PAYOUT_RETURN/')) order by source_id""",
    "wallet.versions": f"""
        select 'wallets/' || seller_account || '/' || currency as aggregate_id,
            {VERSIONS.format("number")} from wallet_entry
            where create_time > cast(:since as timestamptz)
        group by seller_account, currency, block order by aggregate_id, block""",
    # The version of each resource without a history of its own: the version of its last event.
    "wallet.last_versions": f"""select * from ({ALERTS.format(schema="wallet")}
        union all select 'walletPolicies/' || seller_account || '/' || currency, policy_version,
            'wallet.wallet_policy' from wallet where policy_version > 0
        union all select 'sellers/' || seller_account, version, 'wallet.seller' from seller) v
        order by aggregate_id collate "C" """,
    "wallet.outbox": UNPUBLISHED_VERSIONS,
    **INCONSISTENCY_QUERIES,
}
