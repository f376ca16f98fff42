"""The verify queries on statements, their lines, the ledger's entries and breaks."""

from __future__ import annotations

from tallystick_core.reconciliation.breaks import KINDS_OF_BALANCES
from tallystick_storage.verify.shared import ALERTS, UNPUBLISHED_VERSIONS, seal_queries

_KINDS_OF_BALANCES = ", ".join(f"'{kind}'" for kind in sorted(KINDS_OF_BALANCES))
_SUMS_OF_BREAKS = """
    select break_id, currency, sum(amount) as amount from (
        select break_id, currency, amount + fee as amount from statement_line
        where break_id is not null
        union all
        select break_id, currency, -amount from closed_item where break_id is not null) x
    group by break_id, currency"""
# of the breaks that explain a balance
_PARTS_OF_BREAKS = """
    with explaining as (
        select * from break where state in ('OPEN', 'AWAITING_APPROVAL') or resolution = 'ACCEPT')
    select b.break_id, b.break_class, b.account, l.currency, -l.amount as amount
    from explaining b join statement_line l on l.break_id = b.break_id
    union all
    select b.break_id, b.break_class, i.account, i.currency, i.amount
    from explaining b join closed_item i on i.break_id = b.break_id"""
INCONSISTENCY_QUERIES = {
    "reconciliation.inconsistent_statements": """
        select 'reconciliation.statement_line of reconciliation.statement ' || s.file_number || ' '
                || s.statement_number as name,
            'its lines are ' || coalesce(l.line_count, 0) || ' of ' || coalesce(l.total, 0)
                || ', but it has ' || s.line_count || ' of ' || s.total as what
        from statement s join statement_file f on f.file_number = s.file_number
        left join (select file_number, statement_number, count(*) as line_count,
                sum(amount) as total from statement_line group by file_number, statement_number) l
            on l.file_number = s.file_number and l.statement_number = s.statement_number
        where f.state = 'RECONCILED'
            and (coalesce(l.line_count, 0), coalesce(l.total, 0)) <> (s.line_count, s.total)
        union all
        select 'reconciliation.statement ' || s.file_number || ' ' || s.statement_number,
            'has no file'
        from statement s where not exists (
            select from statement_file f where f.file_number = s.file_number)
        union all
        select 'reconciliation.statement of reconciliation.statement_file '
                || f.statement_file_id,
            'it has ' || count(s.file_number) || ' statements of ' || f.statement_count
        from statement_file f left join statement s on s.file_number = f.file_number
        group by f.statement_file_id having count(s.file_number) <> f.statement_count
        order by 1""",
    "reconciliation.inconsistent_files": """
        select 'reconciliation.statement_file ' || f.statement_file_id as name,
            'its lines are ' || coalesce(l.lines, 0) || ', of which ' || coalesce(l.matched, 0)
                || ' matched and ' || coalesce(l.repeated, 0) || ' repeated' as what
        from statement_file f
        left join (select file_number, count(*) as lines,
                count(*) filter (where outcome = 'MATCHED') as matched,
                count(*) filter (where outcome = 'REPEATED') as repeated
            from statement_line group by file_number) l on l.file_number = f.file_number
        where f.state = 'RECONCILED' and (coalesce(l.lines, 0), coalesce(l.matched, 0),
            coalesce(l.repeated, 0)) <> (f.line_count, f.matched_count, f.repeated_count)
        union all
        select 'reconciliation.statement_line ' || l.file_number || ' ' || l.number,
            'has no file'
        from statement_line l where not exists (
            select from statement_file f where f.file_number = l.file_number)
        union all
        select 'reconciliation.statement_line of ' || file_number,
            'its lines are not numbered 1, 2, …'
        from statement_line group by file_number
        having (min(number), max(number)) <> (1, count(*))
        order by 1""",
    "reconciliation.inconsistent_lines": """
        select 'reconciliation.statement_line ' || l.file_number || ' ' || l.number as name,
            'is in a break that does not exist' as what
        from statement_line l where l.outcome = 'BREAK'
            and not exists (select from break b where b.break_id = l.break_id)
        union all
        select 'reconciliation.statement_line ' || l.file_number || ' ' || l.number,
            'repeats a line that no earlier file has'
        from statement_line l where l.outcome = 'REPEATED' and not exists (
            select from statement_line o where o.file_number = l.first_file_number
                and o.identity = l.identity and o.occurrence = l.occurrence)
        union all
        select 'reconciliation.statement_line ' || l.file_number || ' ' || l.number,
            'is booked by itself, but matches with line ' || l.match_number
        from statement_line l where l.match_rule = 'BOOKED' and l.match_number <> l.number
        union all
        select 'reconciliation.statement_line ' || l.file_number || ' ' || l.number,
            'is number ' || l.occurrence || ' of equal lines, but there is no number '
                || l.occurrence - 1
        from statement_line l where l.occurrence > 1 and l.outcome <> 'REPEATED' and not exists (
            select from statement_line o where o.identity = l.identity
                and o.occurrence = l.occurrence - 1 and o.outcome <> 'REPEATED')
        union all
        select 'reconciliation.ledger_posting of reconciliation.closed_item ' || i.book || ' '
                || i.sequence || ' ' || i.entry_number,
            'is missing, but the ledger has the posting'
        from closed_item c join ledger_item i using (book, sequence, entry_number)
        where c.is_own and not exists (
            select from ledger_posting p where p.kind = i.kind and p.source_id = i.source_id)
        union all
        select 'reconciliation.closed_item ' || i.book || ' ' || i.sequence || ' '
            || i.entry_number, 'is in a break that does not exist'
        from closed_item i where i.break_id is not null
            and not exists (select from break b where b.break_id = i.break_id)
        order by 1""",
    "reconciliation.inconsistent_breaks": f"""
        select 'reconciliation.break_change of reconciliation.break ' || b.break_id as name,
            'the break does not match its changes' as what
        from break b left join (
            select break_id, count(*) as n, max(version) as version from break_change
            group by break_id) c on c.break_id = b.break_id
        where (c.n, c.version) is distinct from (b.version, b.version)
        union all
        select 'reconciliation.break_rule of reconciliation.break ' || b.break_id,
            'there is no version ' || b.rule_version || ' of the rule ' || b.kind
        from break b where b.rule_version > 1 and not exists (
            select from break_rule r where r.kind = b.kind and r.version = b.rule_version)
        union all
        select 'reconciliation.break ' || b.break_id,
            'its lines have ' || coalesce(p.amount, 0) || ' more than its entries, but it has '
                || b.difference
        from break b left join ({_SUMS_OF_BREAKS}) p
            on p.break_id = b.break_id and p.currency = b.currency
        where b.kind not in ({_KINDS_OF_BALANCES}) and b.resolution is distinct from 'MATCH'
            and coalesce(p.amount, 0) <> b.difference
        union all
        select 'reconciliation.break of ' || b.account,
            'those that match have ' || sum(p.amount) || ' ' || p.currency || ' more than their '
                || 'entries'
        from break b join ({_SUMS_OF_BREAKS}) p on p.break_id = b.break_id
        where b.resolution = 'MATCH' group by b.account, p.currency having sum(p.amount) <> 0
        order by 1""",
}
"""Finds rows inconsistent with other rows of the schema: each query returns a column `name` and one
`what`.
"""

QUERIES = {
    **seal_queries("reconciliation"),
    "reconciliation.position": "select book, sequence from ledger_position order by book",
    "reconciliation.items": """
        select book, sequence, entry_number, account, currency, amount, kind, source_id,
            external_reference, effective_time, line_type
        from ledger_item
        order by book, sequence, entry_number""",
    "reconciliation.lines": """
        select l.file_number, l.number, f.account, l.line_type, l.currency, l.amount, l.fee,
            coalesce(to_char(l.booking_date, 'YYYY-MM-DD'), '') as booking_date, l.reference,
            l.charge_reference, l.settlement_reference,
            coalesce(to_char(l.value_date, 'YYYY-MM-DD'), '') as value_date, l.code, l.text,
            l.identity
        from statement_line l join statement_file f on f.file_number = l.file_number
        order by l.file_number, l.number""",
    "reconciliation.postings": """
        select (p.kind || '/' || p.source_id) collate "C" as key, p.is_posted, p.transaction_id,
            p.external_reference || ' : ' || (
                select string_agg(e.entry ->> 'account' || ' ' || p.currency || ' '
                    || (e.entry ->> 'amount'), ', ' order by e.number)
                from jsonb_array_elements(p.entries) with ordinality as e (entry, number))
                as posting
        from ledger_posting p order by key""",
    "reconciliation.last_versions": f"""select * from ({ALERTS.format(schema="reconciliation")}
        union all select 'breaks/' || break_id, version, 'reconciliation.break' from break) v
        order by aggregate_id collate "C" """,
    "reconciliation.outbox": UNPUBLISHED_VERSIONS,
    "reconciliation.balance_count": "select count(*) as rows from clearing_balance",
    # R1: an entry is open or closed, and as it was read
    "reconciliation.inconsistent_items": """
        select 'reconciliation.ledger_item ' || book || ' ' || sequence || ' ' || entry_number
                as name,
            'is in ' || num_nonnulls(o.account, c.account)
                || ' of open_item and closed_item, and must be in one' as what
        from ledger_item i left join open_item o using (book, sequence, entry_number)
        left join closed_item c using (book, sequence, entry_number)
        where num_nonnulls(o.account, c.account) <> 1
        union all
        select 'reconciliation.open_item ' || book || ' ' || sequence || ' ' || entry_number,
            'differs from reconciliation.ledger_item'
        from open_item o left join ledger_item i using (book, sequence, entry_number)
        where (o.account, o.currency, o.amount, o.external_reference, o.effective_time, o.line_type)
            is distinct from (i.account, i.currency, i.amount, i.external_reference,
                i.effective_time, i.line_type)
        union all
        select 'reconciliation.closed_item ' || book || ' ' || sequence || ' ' || entry_number,
            'differs from reconciliation.ledger_item'
        from closed_item c left join ledger_item i using (book, sequence, entry_number)
        where (c.account, c.currency, c.amount)
            is distinct from (i.account, i.currency, i.amount)
        order by 1""",
    # R1: what lines matched is as much as they have
    "reconciliation.inconsistent_matches": """
        with line as (
            select file_number, match_number, currency, sum(amount + fee) as amount
            from statement_line where outcome = 'MATCHED' and match_rule <> 'BOOKED'
            group by file_number, match_number, currency),
        item as (
            select file_number, match_number, currency, sum(amount) as amount from closed_item
            where match_number is not null group by file_number, match_number, currency)
        select 'reconciliation.closed_item of reconciliation.statement_line ' || file_number || ' '
                || match_number as name,
            'lines have ' || coalesce(line.amount, 0) || ', and entries '
                || coalesce(item.amount, 0) as what
        from line full join item using (file_number, match_number, currency)
        where line.amount is distinct from item.amount order by 1""",
    "reconciliation.inconsistent_balances": """
        with item as (
            select account, currency, sum(amount) as amount from (
                select account, currency, amount from open_item
                union all select account, currency, amount from closed_item) i
            group by account, currency),
        line as (
            select f.account, l.currency, sum(l.amount) as amount
            from statement_line l join statement_file f on f.file_number = l.file_number
            where l.outcome <> 'REPEATED' group by f.account, l.currency),
        settlement as (
            select p.account, p.currency, sum(p.amount) as amount from ledger_posting p
            where p.kind = 'SETTLEMENT' and p.source_id like '%-settlement-%' and not exists (
                select from statement_line l where l.file_number = p.file_number
                    and l.number = cast(substring(p.source_id from '[0-9]+$') as bigint)
                    and l.line_type = 'SETTLEMENT')
            group by p.account, p.currency)
        select 'reconciliation.clearing_balance ' || account || ' ' || currency as name,
            'is ' || coalesce(b.ledger_balance, 0) || ' and ' || coalesce(b.statement_balance, 0)
                || ', but entries and lines are ' || coalesce(i.amount, 0) || ' and '
                || coalesce(l.amount, 0) + coalesce(s.amount, 0) as what
        from clearing_balance b full join item i using (account, currency)
        full join line l using (account, currency)
        left join settlement s using (account, currency)
        where (coalesce(b.ledger_balance, 0), coalesce(b.statement_balance, 0))
            <> (coalesce(i.amount, 0), coalesce(l.amount, 0) + coalesce(s.amount, 0))
        order by 1""",
    # the sums that the clearing report reads
    "reconciliation.inconsistent_sums": f"""
        with expected as (
            select account, currency, date_bin('1 hour', effective_time, timestamptz 'epoch')
                    as hour, count(*) as entry_count, sum(amount) as amount
            from open_item group by 1, 2, 3),
        explained as (
            select account, currency, break_class, count(distinct break_id) as break_count,
                sum(amount) as amount
            from ({_PARTS_OF_BREAKS}) p group by 1, 2, 3),
        stored as (
            select account, currency, break_class, sum(break_count) as break_count,
                sum(amount) as amount
            from break_sum group by 1, 2, 3)
        select 'reconciliation.expected_sum ' || account || ' ' || currency || ' '
                || to_char(hour at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as name,
            'has ' || coalesce(s.entry_count, 0) || ' entries of ' || coalesce(s.amount, 0)
                || ', but open_item has ' || coalesce(e.entry_count, 0) || ' of '
                || coalesce(e.amount, 0) as what
        from expected_sum s full join expected e using (account, currency, hour)
        where (coalesce(s.entry_count, 0), coalesce(s.amount, 0))
            <> (coalesce(e.entry_count, 0), coalesce(e.amount, 0))
        union all
        select 'reconciliation.break_sum ' || account || ' ' || currency || ' ' || break_class,
            'has ' || coalesce(s.break_count, 0) || ' breaks of ' || coalesce(s.amount, 0)
                || ', but they are ' || coalesce(e.break_count, 0) || ' of '
                || coalesce(e.amount, 0)
        from stored s full join explained e using (account, currency, break_class)
        where (coalesce(s.break_count, 0), coalesce(s.amount, 0))
            <> (coalesce(e.break_count, 0), coalesce(e.amount, 0))
        order by 1""",
    # R1: what the clearing report cannot explain
    "reconciliation.unexplained": f"""
        with part as (
            select account, currency, ledger_balance - statement_balance as amount
            from clearing_balance
            union all
            select e.account, p.currency, -e.amount from ledger_posting p
            cross join lateral jsonb_to_recordset(p.entries) as e (account text, amount bigint)
            where not p.is_posted and not (p.kind = 'SETTLEMENT' and e.account = 'banks/transit')
            union all select account, currency, -amount from open_item
            union all select account, currency, -amount from ({_PARTS_OF_BREAKS}) p)
        select 'reconciliation.clearing_balance ' || account || ' ' || currency as name,
            'differs from the statements by ' || sum(amount) || ', which nothing explains' as what
        from part where account ~ '^(psp/[^/]+/clearing|payouts/[^/]+/clearing|banks/[^/]+)$'
        group by account, currency having sum(amount) <> 0 order by 1""",
    **INCONSISTENCY_QUERIES,
}
