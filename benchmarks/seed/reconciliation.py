"""Reconciles the ledger of the clones: statement files, their lines, and breaks.

A file has a line for each of a thousand entries. Four lines in five match. Each other line is in a
break, and no file has its entry yet, nor those of the last tenth and of payouts.
"""

from __future__ import annotations

from benchmarks.seed.clone import CloneSource, RowCloner, fetch_value, template_table
from benchmarks.seed.templates import (
    BREAKS,
    CLEARING_ACCOUNT,
    ORDER_AMOUNT,
    STATEMENT_FILE_ID,
)

_LINES_PER_FILE = 1000
_LINES_PER_BREAK = 5
_ENTRIES_SQL = """
    select t.book, t.sequence, e.line_number as entry_number, a.account, e.currency,
        -e.amount as amount, t.kind, t.source_id, t.external_reference, t.effective_time,
        case t.kind when 'PAYOUT' then 'PAYOUT' when 'PAYOUT_RETURN' then 'PAYOUT_RETURN'
            else 'CHARGE' end as line_type
    from ledger.account a join ledger.entry e on e.account_id = a.account_id
    join ledger.tx t on t.book = e.book and t.sequence = e.sequence
    where a.account ~ '^(psp|payouts)/[^/]+/clearing$'
"""
_IDENTITY_PARTS = (
    f"'{CLEARING_ACCOUNT}'",
    "'CHARGE'",
    "'EUR'",
    f"'{ORDER_AMOUNT}'",
    "'0'",
    "''",
    "''",
    "reference",
    "''",
    "' charge '",
)
"""SQL for the parts that `line_identity` joins, of a line without a reference of its own."""
_IDENTITY_SQL = "cast(left(encode(sha256({}), 'hex'), 32) as uuid)".format(
    " || '\\x00' || ".join(f"convert_to({part}, 'UTF8')" for part in _IDENTITY_PARTS)
)


def clone_reconciliation(cloner: RowCloner, last_template_sequence: int) -> None:
    """Clones files, lines and breaks for the ledger's transactions after those of the templates,
    and reads the ledger to its end.
    """
    _create_source_tables(cloner, last_template_sequence)
    _clone_files(cloner)
    _insert_lines(cloner)
    for state, break_id in BREAKS.items():
        _clone_breaks(cloner, state, break_id)
    _read_ledger(cloner)


def _create_source_tables(cloner: RowCloner, last_template_sequence: int) -> None:
    """`new_line` has the lines, and the entry of each: the oldest nine tenths of the pay-ins."""
    first_file = 1 + int(
        fetch_value(cloner.connection, "select max(file_number) from reconciliation.statement_file")
    )
    cloner.connection.execute(f"""
        create temporary table clearing_entry as {_ENTRIES_SQL};
        create temporary table new_line as
        select x.*, {first_file} + (rank - 1) / {_LINES_PER_FILE} as file_number,
            (rank - 1) % {_LINES_PER_FILE} + 1 as number,
            case rank % {2 * _LINES_PER_BREAK}
                when 2 then 'OPEN' when {_LINES_PER_BREAK + 2} then 'RESOLVED' end as break_state,
            case when rank % {_LINES_PER_BREAK} = 2 then 'x-' || rank
                else external_reference end as reference
        from (select e.*, row_number() over (order by sequence) as rank, count(*) over () as total
            from clearing_entry e where account = '{CLEARING_ACCOUNT}' and kind = 'PAY_IN'
                and sequence > {last_template_sequence}) x
        where rank <= total * 9 / 10;
        create temporary table new_file as
        select file_number, count(*) as line_count, count(break_state) as break_count,
            sum(amount) as total, max(effective_time) + interval '1 day' as start_time
        from new_line group by file_number;
        create temporary table new_break as
        select 'f' || l.file_number || '-' || l.number as break_id, l.file_number,
            'file-' || l.file_number as statement_file_id, l.break_state, l.rank, f.start_time
        from new_line l join new_file f using (file_number) where l.break_state is not null;
        analyze clearing_entry, new_line, new_file, new_break
    """)


def _clone_files(cloner: RowCloner) -> None:
    template_file = (
        f"(select file_number from {template_table('reconciliation.statement_file')} "
        f"where statement_file_id = '{STATEMENT_FILE_ID}')"
    )
    source = CloneSource("new_file", _start_of_template("statement_file"))
    cloner.insert_rows(
        "reconciliation.statement_file",
        f"t.statement_file_id = '{STATEMENT_FILE_ID}'",
        source,
        statement_file_id="'file-' || s.file_number",
        file_number="s.file_number",
        file_name="'file-' || s.file_number || '.csv'",
        content_sha256="encode(sha256(convert_to('file-' || s.file_number, 'UTF8')), 'hex')",
        item_count="s.line_count + 2",
        line_count="s.line_count",
        matched_count="s.line_count - s.break_count",
    )
    cloner.insert_rows(
        "reconciliation.statement",
        f"t.file_number = {template_file}",
        source,
        file_number="s.file_number",
        line_count="s.line_count",
        total="s.total",
    )
    cloner.connection.execute(
        "select setval(pg_get_serial_sequence('reconciliation.statement_file', 'file_number'), "
        "(select max(file_number) from reconciliation.statement_file))"
    )


def _insert_lines(cloner: RowCloner) -> None:
    cloner.connection.execute(f"""
        insert into reconciliation.statement_line (file_number, number, statement_number,
            line_number, line_type, code, amount, currency, fee, reference, charge_reference,
            client_reference, settlement_reference, original_currency, text, identity, occurrence,
            outcome, match_rule, match_number, break_id)
        select file_number, number, 1, number + 1, 'CHARGE', 'charge', {ORDER_AMOUNT}, 'EUR', 0, '',
            reference, '', '', '', '', {_IDENTITY_SQL}, 1,
            case when break_state is null then 'MATCHED' else 'BREAK' end,
            case when break_state is null then 'CHARGE_REFERENCE' else '' end,
            case when break_state is null then number end,
            case when break_state is not null then 'f' || file_number || '-' || number end
        from new_line;
        insert into reconciliation.closed_item (book, sequence, entry_number, account, currency,
            amount, file_number, match_number, is_own)
        select book, sequence, entry_number, account, currency, amount, file_number, number, false
        from new_line where break_state is null
    """)


def _clone_breaks(cloner: RowCloner, state: str, template_break_id: str) -> None:
    """Clones breaks in a state: of two classes, and some of them with an assignee."""
    source = CloneSource(
        f"(select * from new_break where break_state = '{state}')", _start_of_template("break")
    )
    template_filter = f"t.break_id = '{template_break_id}'"
    assignee = f"case when s.rank % {10 * _LINES_PER_BREAK} = 2 then 'ann' else '' end"
    cloner.insert_rows(
        "reconciliation.break",
        template_filter,
        source,
        break_id="s.break_id",
        file_number="s.file_number",
        statement_file_id="s.statement_file_id",
        break_class=f"case when s.rank % {4 * _LINES_PER_BREAK} < 10 then 'FINANCE' "
        "else t.break_class end",
        assignee=assignee,
    )
    cloner.insert_rows(
        "reconciliation.break_change",
        template_filter,
        source,
        break_id="s.break_id",
        assignee=assignee,
    )
    cloner.insert_events(
        f"breaks/{template_break_id}",
        f"(select * from new_break where break_state = '{state}')",
        "'breaks/' || s.break_id",
    )


def _start_of_template(table: str) -> str:
    """A query for the time at which the template of a table starts."""
    return f"select min(create_time) from {template_table(f'reconciliation.{table}')}"


def _read_ledger(cloner: RowCloner) -> None:
    """Entries that no file has yet, the balances and sums, and the position in the ledger."""
    cloner.connection.execute("""
        delete from reconciliation.open_item;
        insert into reconciliation.ledger_item (book, sequence, entry_number, account, currency,
            amount, kind, source_id, external_reference, effective_time, line_type)
        select * from clearing_entry e where not exists (
            select from reconciliation.ledger_item i where (i.book, i.sequence, i.entry_number)
                = (e.book, e.sequence, e.entry_number));
        insert into reconciliation.open_item (book, sequence, entry_number, account, currency,
            amount, external_reference, effective_time, line_type)
        select book, sequence, entry_number, account, currency, amount, external_reference,
            effective_time, line_type
        from clearing_entry e where not exists (
            select from reconciliation.closed_item c where (c.book, c.sequence, c.entry_number)
                = (e.book, e.sequence, e.entry_number));
        delete from reconciliation.clearing_balance;
        insert into reconciliation.clearing_balance (account, currency, ledger_balance,
            statement_balance)
        select account, currency, sum(ledger_amount), sum(statement_amount) from (
            select account, currency, amount as ledger_amount, 0 as statement_amount
            from clearing_entry
            union all
            select f.account, l.currency, 0, l.amount from reconciliation.statement_line l
            join reconciliation.statement_file f using (file_number)
            where l.outcome <> 'REPEATED') x
        group by account, currency;
        delete from reconciliation.expected_sum;
        insert into reconciliation.expected_sum (account, currency, hour, entry_count, amount)
        select account, currency, date_bin('1 hour', effective_time, timestamptz 'epoch'), count(*),
            sum(amount)
        from reconciliation.open_item group by 1, 2, 3;
        delete from reconciliation.break_sum;
        insert into reconciliation.break_sum (account, currency, break_class, break_count, amount)
        select account, currency, break_class, count(distinct break_id), sum(amount) from (
            select b.break_id, b.break_class, b.account, l.currency, -l.amount as amount
            from reconciliation.break b join reconciliation.statement_line l using (break_id)
            where b.state in ('OPEN', 'AWAITING_APPROVAL') or b.resolution = 'ACCEPT'
            union all
            select b.break_id, b.break_class, i.account, i.currency, i.amount
            from reconciliation.break b join reconciliation.closed_item i using (break_id)
            where b.state in ('OPEN', 'AWAITING_APPROVAL') or b.resolution = 'ACCEPT') p
        group by 1, 2, 3;
        update reconciliation.ledger_position p set sequence = h.sequence
        from ledger.head h where h.book = p.book
    """)
