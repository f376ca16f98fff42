"""The verify queries on the ledger: the hash chain of transactions, their entries, and account
balances.
"""

from __future__ import annotations

from tallystick_storage.verify.shared import (
    ALERTS,
    POSTING,
    UNPUBLISHED_VERSIONS,
    canonical_text,
    seal_queries,
    to_microseconds,
)

INCONSISTENCY_QUERIES = {
    "ledger.inconsistent_accounts": """
        select 'ledger.account ' || book || ' ' || account || ' ' || currency as name,
            'was opened at no time' as what
        from account where not isfinite(create_time) order by 1""",
}
"""Finds rows inconsistent with other rows of the schema: each query returns a column `name` and one
`what`.
"""


def _fingerprinted(effective_time: str) -> str:
    """The text of a posting that its fingerprint covers, before its lines."""
    return canonical_text(
        "t.kind",
        "t.source_id",
        "t.description",
        "t.external_reference",
        "t.buyer_account",
        effective_time,
        "coalesce(t.reverses, 0)",
    )


QUERIES = {
    **seal_queries("ledger"),
    "ledger.last_versions": f"""select * from ({ALERTS.format(schema="ledger")}) v
        order by aggregate_id collate "C" """,
    # entries on the accounts that statements are about; debits are positive, as in a statement
    "ledger.clearing_entries": """
        select t.book, t.sequence, t.kind, t.source_id, t.external_reference, t.effective_time,
            e.line_number as entry_number, a.account, e.currency, -e.amount as amount
        from account a join entry e on e.account_id = a.account_id
        join tx t on t.book = e.book and t.sequence = e.sequence
        where a.account ~ '^(psp/[^/]+/clearing|payouts/[^/]+/clearing|banks/[^/]+)$'
        order by t.book collate "C", t.sequence, e.line_number""",
    "ledger.statement_postings": f"""
        select (t.kind || '/' || t.source_id) collate "C" as key,
            t.book || '-' || t.sequence as transaction_id, {POSTING} as posting
        from tx t where t.kind in ('PROVIDER_FEE', 'SETTLEMENT', 'BANK_STATEMENT_LINE',
            'ADJUSTMENT', 'WRITE_OFF')
        order by key, t.sequence""",
    "ledger.outbox": UNPUBLISHED_VERSIONS,
    "ledger.heads": "select book, sequence, hash, post_time from head order by book",
    "ledger.relayed": "select book, sequence from relayed order by book",
    "ledger.tx_count": "select count(*) as rows from tx",
    "ledger.last": """
        select h.book, t.sequence, t.hash, t.post_time
        from (select book from head union select book from relayed
            union select distinct book from tx) h
        left join lateral (select * from tx t where t.book = h.book
            order by t.sequence desc limit 1) t on true order by h.book""",
    "ledger.inconsistent_transactions": f"""
        select 'ledger.tx ' || t.book || '-' || t.sequence || case when w.of_entries
            then ' in ledger.entry' else '' end as name, w.what
        from (
            select t.*, e.n as entries, e.numbered, e.balanced,
                lag(t.sequence, 1, 0::bigint) over b as sequence_before,
                lag(t.hash, 1, cast(:genesis as bytea)) over b as hash_before,
                    lag(t.post_time) over b as time_before,
                t.kind = any(:kinds) as known_kind,
                t.fingerprint = sha256(convert_to({_fingerprinted("''")} || e.lines, 'UTF8'))
                    and t.effective_time = t.post_time
                or t.fingerprint = sha256(convert_to({
        _fingerprinted(to_microseconds("t.effective_time"))
    } || e.lines, 'UTF8'))
                    as has_fingerprint,
                t.hash = sha256(t.previous_hash || convert_to({
        canonical_text(
            "t.book",
            "t.sequence",
            "t.kind",
            "t.source_id",
            "t.caller",
            "t.description",
            "t.external_reference",
            "t.buyer_account",
            "coalesce(t.reverses, 0)",
            to_microseconds("t.effective_time"),
            to_microseconds("t.post_time"),
        )
    } || e.lines, 'UTF8')) as has_hash
            from tx t left join (
                select e.book, e.sequence, count(*) as n, min(e.line_number) = 1
                    and max(e.line_number) = count(*) as numbered,
                    case when min(e.currency) = max(e.currency) then sum(e.amount) = 0
                        else not exists (
                        select from entry s where s.book = e.book and s.sequence = e.sequence
                            group by s.currency having sum(s.amount) <> 0) end as balanced,
                    string_agg({
        canonical_text("coalesce(a.account, '')", "e.currency", "e.amount")
    }, '' order by e.line_number) as lines
                from entry e left join account a on a.account_id = e.account_id
                    group by e.book, e.sequence) e
                on e.book = t.book and e.sequence = t.sequence
            window b as (partition by t.book order by t.sequence)) t
        cross join lateral (values
            (false, case when t.sequence <> t.sequence_before + 1
                then 'follows ' || t.sequence_before || ', with a gap' end),
            (false, case when t.previous_hash <> t.hash_before
                then 'previous_hash is not the hash of the transaction before' end),
            (false, case when t.post_time < t.time_before
                then 'was posted before the transaction before it' end),
            (false, case when (t.entries = t.entry_count and t.entry_count >= 2) is not true
                then 'has ' || coalesce(t.entries, 0) || ' entries, and says ' || t.entry_count
                    end),
            (true, case when not t.numbered then 'its entries are not numbered 1, 2, …' end),
            (false, case when not t.balanced then 'its entries do not sum to zero' end),
            (false, case when not t.known_kind
                then 'is of the kind ' || quote_literal(t.kind) || ', which does not exist'
                when t.has_fingerprint is not true
                    then 'its fingerprint is not that of its content' end),
            (false, case when t.known_kind and t.has_hash is not true
                then 'its hash is not that of its content' end)) w (of_entries, what)
        where (t.sequence = t.sequence_before + 1 and t.previous_hash = t.hash_before
            and coalesce(t.post_time >= t.time_before, true)
                and t.entries = t.entry_count and t.entry_count >= 2 and t.numbered and t.balanced
                    and t.known_kind
                    and t.has_fingerprint and t.has_hash) is not true
            and w.what is not null
        order by t.book, t.sequence""",
    "ledger.inconsistent_entries": """
        select 'ledger.entry ' || e.book || '-' || e.sequence || '/' || e.line_number as name,
            w.what
        from (
            select e.*, a.currency as account_currency, a.book as account_book,
                row_number() over w as nth, sum(e.amount) over w as so_far
            from entry e left join account a on a.account_id = e.account_id
            window w as (partition by e.account_id order by e.book, e.sequence, e.line_number)) e
        cross join lateral (values
            (case when e.account_currency is distinct from e.currency
                then 'is in another currency than its account' end),
            (case when e.account_book <> e.book then 'is in another book than its account' end),
            (case when e.number <> e.nth
                then 'is number ' || e.number || ' of its account, and must be ' || e.nth end),
            (case when e.balance_after <> e.so_far
                then 'balance_after is ' || e.balance_after || ', but the entries so far sum to ' ||
                e.so_far end)) w (what)
        where (e.account_currency = e.currency and e.account_book = e.book and e.number = e.nth
            and e.balance_after = e.so_far) is not true and w.what is not null
        order by e.book, e.sequence, e.line_number""",
    "ledger.orphan_entries": """
        select 'ledger.entry ' || e.book || '-' || e.sequence || '/' || e.line_number as name,
            'has no transaction' as what
        from entry e
            where not exists (select from tx t where t.book = e.book and t.sequence = e.sequence)
            order by e.book, e.sequence, e.line_number""",
    "ledger.unbalanced": """
        select 'ledger.entry in ' || book || ' ' || currency as name,
            'all entries sum to ' || sum(amount) || ', not to zero' as what
        from entry group by book, currency having sum(amount) <> 0 order by book, currency""",
    "ledger.inconsistent_balances": """
        select 'ledger.account ' || a.book || ' ' || a.account || ' ' || a.currency as name, w.what
        from account a left join (select account_id, sum(amount) as amount, count(*) as n from entry
            group by account_id) e on e.account_id = a.account_id
        cross join lateral (values
            (case when a.balance <> coalesce(e.amount, 0)
                then 'balance is ' || a.balance || ', but its entries sum to ' || coalesce(e.amount,
                0) end),
            (case when a.entry_count <> coalesce(e.n, 0)
                then 'entry_count is ' || a.entry_count || ', but it has ' || coalesce(e.n,
                0) || ' entries' end)
            ) w (what)
        where (a.balance, a.entry_count) is distinct from (coalesce(e.amount, 0), coalesce(e.n, 0))
            and w.what is not null
        order by a.book, a.account, a.currency""",
    "ledger.repeated": """
        select 'ledger.tx ' || book || ' ' || kind || ' ' || source_id as name,
            'is booked ' || count(*) || ' times' as what
        from tx group by book, source_id, kind having count(*) > 1
            order by book, kind, source_id""",
    "ledger.inconsistent_reversals": """
        select 'ledger.tx ' || book || '-' || sequence as name,
            'reverses no transaction, or does not match the one that it names' as what
        from tx where (kind = 'REVERSAL') <> (reverses is not null) or reverses >= sequence
            order by book, sequence""",
    "ledger.pay_ins": f"""
        select t.source_id, {POSTING} as posting from tx t where t.kind = 'PAY_IN'
            order by t.source_id, t.sequence""",
    "ledger.sellers": """
        select substr(account, 9) as seller_account, currency, sum(balance) as balance from account
        where account like 'sellers/%' and entry_count > 0
        group by account, currency order by seller_account, currency""",
    "ledger.unapplied": f"""
        select t.source_id, {POSTING} as posting from tx t where t.kind = 'UNAPPLIED'
            and t.source_id like 'u-%' order by t.source_id, t.sequence""",
    "ledger.payouts": f"""
        select (t.kind || '/' || t.source_id) collate "C" as wallet_source_id, {POSTING} as posting
        from tx t where t.kind in ('PAYOUT', 'PAYOUT_RETURN')
            or (t.kind = 'UNAPPLIED' and t.source_id like 't-%')
                order by wallet_source_id, t.sequence""",
    **INCONSISTENCY_QUERIES,
}
