"""The verify queries on payouts: their history, attempts and transfers, and batches."""

from __future__ import annotations

from tallystick_storage.verify.shared import (
    ALERTS_AND_DEAD_LETTERS,
    UNPUBLISHED_VERSIONS,
    VERSIONS,
    operations_query,
    seal_queries,
)

INCONSISTENCY_QUERIES = {
    "payout.inconsistent_attempts": """
        select 'payout.attempt payout ' || p.payout_id as name,
            'has ' || a.n || ' attempts of its payout, which counts ' || p.attempt_count as what
        from payout p cross join lateral (
            select count(*) filter (where a.amount = p.net_amount and a.currency = p.currency
                and a.provider = p.provider) as n, count(*) as every
            from attempt a where a.kind = 'payout' and a.operation_id = p.payout_id) a
        where a.n <> p.attempt_count or a.n <> a.every order by 1""",
    "payout.inconsistent_states": """
        select 'payout.payout_in_state ' || payout_id as name, 'does not match its payout' as what
        from payout_in_state s full
            join (select * from payout
            where state not in ('CREATED', 'READY', 'SUBMITTING', 'PAID')) p using (payout_id)
        where (s.owner, s.state, s.create_time) is distinct from (p.owner, p.state, p.create_time)
            order by 1""",
    "payout.inconsistent_batches": """
        select 'payout.payout_batch_item of payout.payout_batch ' || b.payout_batch_id as name,
            'are ' || i.n || ', of which ' || i.rejected || ' are rejected; the batch counts ' ||
                b.generated_count || ' and ' || b.rejected_count as what
        from payout_batch b cross join lateral (
            select count(*) as every, count(*) filter (where i.state <> 'REQUESTED') as n,
                count(*) filter (where i.state = 'REJECTED') as rejected,
                count(*) filter (where i.state = 'CREATED' and not exists (
                    select from payout p where p.payout_id = i.payout_id
                        and p.payout_batch_id = i.payout_batch_id)) as lost
            from payout_batch_item i where i.payout_batch_id = b.payout_batch_id) i
        where (i.n, i.rejected, i.lost) <> (b.generated_count, b.rejected_count, 0) or not b.is_run
            and i.every <> b.item_count order by 1""",
}
"""Finds rows inconsistent with other rows of the schema: each query returns a column `name` and one
`what`.
"""

QUERIES = {
    **seal_queries("payout"),
    "payout.payout_count": "select count(*) as rows from payout",
    "payout.payouts": (
        "select payout_id, state, booked, version, seller_account, currency, amount from payout "
        "order by payout_id"
    ),
    "payout.inconsistent_history": """
        select 'payout.payout_history ' || h.payout_id || ' ' || h.version as name,
            coalesce(h.from_state, 'None') || ' to ' || h.to_state || ' does not follow ' ||
                coalesce(h.before, 'None') as what
        from (
            select payout_id, version, from_state, to_state, transition_reason, booked,
                row_number() over w as number, lag(to_state) over w as before
            from payout_history window w as (partition by payout_id order by version)) h
        where (h.version = h.number and h.from_state is not distinct from h.before
            and case when h.before is null then h.to_state = 'CREATED' and not h.booked
                when h.before = h.to_state
                    then h.transition_reason || ' ' || h.booked = any(:same_state_transitions)
                else h.before || ' ' || h.to_state = any(:transitions)
                    and not h.booked end) is not true
        order by h.payout_id, h.version""",
    "payout.inconsistent_ends": """
        select 'payout.payout ' || p.payout_id as name, w.what
        from payout p left join payout_history h on h.payout_id = p.payout_id
            and h.version = p.version and h.to_state = p.state and h.booked = p.booked
        left join payout_history n on n.payout_id = p.payout_id and n.version = p.version + 1
        cross join lateral (values
            (case when h.version is null or n.version is not null then coalesce(
                (select 'is ' || p.state || ' at version ' || p.version ||
                    ', but its history ends in ' || l.to_state || ' at ' || l.version
                 from payout_history l where l.payout_id = p.payout_id order by l.version desc
                     limit 1), 'has no history') end),
            (case when p.net_amount + p.fee <> p.amount or p.fee < 0 or p.net_amount <= 0
                then 'what the bank gets and the fee do not sum to the amount' end)) w (what)
        where (h.version is null or n.version is not null or p.net_amount + p.fee <> p.amount
            or p.fee < 0 or p.net_amount <= 0) and w.what is not null
        order by p.payout_id""",
    "payout.missing": """
        select distinct 'payout.payout ' || h.payout_id as name, 'has history and no payout' as what
        from payout_history h
            where not exists (select from payout p where p.payout_id = h.payout_id)
        order by name""",
    "payout.in_flight": """
        select distinct seller_account, currency from payout
        where not booked and state in ('PAID', 'RETURNED', 'FAILED', 'REJECTED', 'CANCELLED')
            order by seller_account, currency""",
    "payout.operations": operations_query("""
        select 'payout' as kind, payout_id as operation_id, payout_id as open
            from payout where not booked
        union all
        select 'destination_verification', payout_destination_id, payout_destination_id
            from payout_destination where state = 'PENDING_VERIFICATION'"""),
    "payout.transfers": """
        select t.*, p.version
        from transfer t join payout p on p.payout_id = t.payout_id
            order by t.payout_id, t.provider_reference""",
    "payout.money_movements": """
        select (case when b.is_return then 'PAYOUT_RETURN' when t.match = 'CURRENCY_MISMATCH'
            then 'UNAPPLIED' else 'PAYOUT' end || '/' || t.source_id)
                collate "C" as wallet_source_id,
            b.is_return, t.*, p.seller_account, p.amount as payout_amount, p.fee as payout_fee,
                p.currency as payout_currency, p.booked
        from transfer t join payout p on p.payout_id = t.payout_id
        cross join lateral (select false as is_return union all select true
            where t.returned_amount is not null) b order by wallet_source_id""",
    "payout.versions": f"""
        select 'payouts/' || payout_id as aggregate_id, {VERSIONS.format("version")}
            from payout_history
            where create_time > cast(:since as timestamptz)
        group by payout_id, block order by payout_id, block""",
    # The version of each resource without a history of its own: the version of its last event.
    "payout.last_versions": f"""select * from ({ALERTS_AND_DEAD_LETTERS.format(schema="payout")}
        union all select 'payoutDestinations/' || payout_destination_id, version,
            'payout.payout_destination' from payout_destination
        union all select 'payoutBatches/' || payout_batch_id, version, 'payout.payout_batch'
            from payout_batch
        union all select 'payoutSchedules/' || case seller_account when '' then '-'
            else seller_account end || '/' || currency, version,
            'payout.payout_schedule' from payout_schedule) v
        order by aggregate_id collate "C" """,
    "payout.outbox": UNPUBLISHED_VERSIONS,
    **INCONSISTENCY_QUERIES,
}
