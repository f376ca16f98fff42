"""Matches the lines of a file with the ledger's entries, a set at a time.

Each pass moves the staged lines that match to statement_line, and the entries that they match from
open_item to closed_item, in one statement. What is left after the last pass is a break.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.reconciliation.named_entries import named_entries, our_id
from tallystick_storage.reconciliation.statement_files import LINE_COLUMNS, FileRow
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(frozen=True, slots=True)
class MatchLimits:
    """What may differ between a line and an entry that match: days, and the part of a charge that
    its fee is at most, in percent.
    """

    days: int
    fee_percent: int


class RestLine(NamedTuple):
    """A staged line that matches nothing."""

    number: int
    line_type: str
    currency: str
    amount: int
    fee: int
    booking_date: date | None
    reference: str
    charge_reference: str
    client_reference: str
    is_correction: bool
    is_repeated: bool
    settlement_reference: str
    is_charge_taken: bool
    is_order_taken: bool


class LineCounts(NamedTuple):
    """The lines of a file that are about what the ledger has: charges, payouts, bank entries."""

    unmatched_count: int
    line_count: int


class ItemRow(NamedTuple):
    """A ledger entry on a clearing account. `amount`: debits less credits."""

    book: str
    sequence: int
    entry_number: int
    account: str
    currency: str
    amount: int
    kind: str
    source_id: str
    external_reference: str
    effective_time: datetime
    line_type: str


class ItemKey(NamedTuple):
    """What identifies a ledger entry."""

    book: str
    sequence: int
    entry_number: int


class LineSums(NamedTuple):
    """The lines of a statement, once none is staged. Amounts in minor units."""

    statement_number: int
    matched_count: int
    repeated_count: int
    amount: Decimal | None
    """By how much the new lines change the balance; None: there are none."""
    fee: Decimal
    """Of the matched lines."""
    last_day: date | None


class AccountSum(NamedTuple):
    """A sum of entries on an account."""

    account: str
    currency: str
    amount: int


class SettlementSum(NamedTuple):
    """What the provider paid to the bank at once."""

    reference: str
    currency: str
    amount: int
    day: date | None
    number: int
    """Of its first line."""
    is_line: bool
    """Whether it is a line of the statement."""


ITEM_COLUMNS = columns(ItemRow)
_STATEMENT_COLUMNS = f"file_number, {LINE_COLUMNS}"
_ITEM_TYPE = "case when :is_bank then 'BANK_ENTRY' else i.line_type end"
# a bank statement has what providers pay in, and what pays payouts
_IS_PAYOUT = "i.account like 'payouts/%/clearing'"
_IN_ACCOUNTS = f"(i.account = any (cast(:accounts as text[])) or :is_bank and {_IS_PAYOUT})"
# dates of the ledger are those of UTC
_ITEM_DAY = "cast(i.effective_time at time zone 'UTC' as date)"
_GROSS = "(s.amount + s.fee)"
# amounts have up to 18 digits, and a hundred times that exceeds a bigint
_IS_FEE_LIKELY = (
    f"cast(s.fee as numeric) * 100 between 0 and :fee_percent * abs(cast({_GROSS} as numeric))"
)
_OUR_ID = our_id("s")

_STAGED = "s.file_number = :file_number"
_REST = "s.ctid = any (cast(:rest as tid[]))"
# The planner takes the staged lines for a single one while statistics are of an empty table. Two
# lists that it then joins in another way than by hashing cost the square of their length.
_JOIN_BY_HASHING = text("""
    select set_config('enable_nestloop', :others, true),
        set_config('enable_mergejoin', :others, true)
""")
_NUMBER_DUPLICATES = text("""
    with numbered as (
        select ctid as tid, row_number() over (partition by identity order by number) as occurrence
        from staged_line where file_number = :file_number),
    duplicate as materialized (select * from numbered where occurrence > 1)
    update staged_line s set occurrence = d.occurrence from duplicate d
    where s.ctid = d.tid
""")
# `limit` keeps the planner from a join with all earlier lines.
_MOVE_REPEATED = text(f"""
    with repeated as materialized (
        select s.ctid as tid, l.file_number as first_file_number
        from staged_line s cross join lateral (
            select l.file_number from statement_line l
            where l.reference = s.reference and l.line_type = s.line_type
                and l.identity = s.identity and l.occurrence = s.occurrence
                and l.outcome <> 'REPEATED' limit 1) l
        where {_STAGED}),
    moved as (delete from staged_line s where s.ctid = any (array(select tid from repeated)))
    insert into statement_line ({_STATEMENT_COLUMNS}, outcome, match_rule, first_file_number)
    select {_STATEMENT_COLUMNS}, 'REPEATED', '', first_file_number
    from repeated r join staged_line s on s.ctid = r.tid
""")
# the account had a line of the same type and reference: in an earlier file, or booked by this one
_EARLIER_LINE = """
    select from statement_line l join statement_file f on f.file_number = l.file_number
    where l.reference = s.reference and l.line_type = s.line_type and l.outcome <> 'REPEATED'
        and (l.file_number <> s.file_number or l.match_rule = 'BOOKED')
        and f.account = :account"""
# A line that comes again, with the same values or with others, is not booked twice. Some providers
# give the same reference to the fees of each settlement.
_MOVE_BOOKED = text(f"""
    with line as materialized (
        select s.ctid as tid, s.*, row_number() over (
            partition by line_type, reference, settlement_reference order by number) as rank
        from staged_line s where {_STAGED} and s.line_type in ('FEE', 'SETTLEMENT')),
    booked as materialized (
        select * from line s where s.reference = '' or s.rank = 1 and not exists ({_EARLIER_LINE}
            and l.settlement_reference = s.settlement_reference)),
    moved as (delete from staged_line s where s.ctid = any (array(select tid from booked)))
    insert into statement_line ({_STATEMENT_COLUMNS}, outcome, match_rule, match_number)
    select {_STATEMENT_COLUMNS}, 'MATCHED', 'BOOKED', number from booked order by number
""")


class _Rest(NamedTuple):
    """The lines that are left: how many, and their places in staged_line as an array of tid; None:
    there are none.
    """

    line_count: int
    tids: str | None


def _pass(rule: str, ctes: str) -> Query[_Rest]:
    """A pass. `ctes` have the lines that it looks at, `line`, and those that match, with the number
    of the first line of those that match together: `line_match` and `item_match`. Rows are named by
    their place, `tid`, which stays while the file and the entries are locked; `any (array)` looks
    them up there.

    Matches are in the order of the file: rows and index entries that are written in order cost a
    third.
    """
    return Query(
        _Rest,
        f"""
        with {ctes},
        stored as (
            insert into statement_line ({_STATEMENT_COLUMNS}, outcome, match_rule, match_number)
            select {_STATEMENT_COLUMNS}, 'MATCHED', '{rule}', m.match_number
            from line_match m join staged_line s on s.ctid = m.tid
            where s.ctid = any (array(select tid from line_match))),
        closed as (
            insert into closed_item ({ITEM_COLUMNS}, file_number, match_number, is_own)
            select {columns(ItemRow, "i")}, :file_number, m.match_number, false
            from item_match m join open_item i on i.ctid = m.tid
            where i.ctid = any (array(select tid from item_match))),
        moved as (delete from open_item i where i.ctid = any (array(select tid from item_match)))
        select count(*) as line_count, cast(array_agg(l.tid) as text) as tids from line l
        where not exists (select from line_match m where m.tid = l.tid)
        """,
    )


def _lines(lines: str, key: str) -> str:
    """Selects the lines of a pass, with a key."""
    return f"""
        select s.ctid as tid, s.number, s.line_type, {key} as key, s.currency, {_GROSS} as gross,
            s.booking_date as day, s.occurrence, {_IS_FEE_LIKELY} as is_fee_likely
        from staged_line s where {lines}"""


_HAS_KEY = "l.key <> '' and l.occurrence <= :max_occurrence"


def _items_of_key(line: str, item_key: str, place: str) -> str:
    """Selects the sum of the entries with key, currency and type of a line: one index lookup.
    `place`: selects where they are.
    """
    return f"""
        select sum(i.amount) as amount, min({_ITEM_DAY}) as first_day,
            max({_ITEM_DAY}) as last_day, {place}
        from open_item i
        where {item_key} = {line}.key and {item_key} <> '' and i.currency = {line}.currency
            and {_ITEM_TYPE} = {line}.line_type and {_IN_ACCOUNTS}"""


def _by_unique_key(rule: str, line_key: str, item_key: str, lines: str) -> Query[_Rest]:
    """The pass in which a line with a key that no other has matches the only entry with it."""
    return _pass(
        rule,
        f"""
        line as materialized ({_lines(lines, line_key)}),
        repeated as (
            select l.line_type, l.key from line l where {_HAS_KEY} group by 1, 2
            having count(*) > 1),
        matched as materialized (
            select l.tid as line_tid, l.number, i.tid as item_tid
            from line l cross join lateral (
                {_items_of_key("l", item_key, "min(i.ctid) as tid, count(*) as item_count")}) i
            where {_HAS_KEY} and l.is_fee_likely
                and (l.line_type, l.key) not in (select line_type, key from repeated)
                and i.item_count = 1 and i.amount = l.gross
                and (l.day is null or abs(l.day - i.first_day) <= :days)),
        line_match as not materialized (
            select line_tid as tid, number as match_number from matched),
        item_match as not materialized (
            select item_tid as tid, number as match_number from matched)
        """,
    )


def _by_key(rule: str, line_key: str, item_key: str, lines: str) -> Query[_Rest]:
    """The pass in which lines with a key match the entries with it: the sums of both, their
    currency and type agree, and so do dates and fees within the limits.
    """
    return _pass(
        rule,
        f"""
        line as materialized ({_lines(lines, line_key)}),
        line_group as materialized (
            select l.line_type, l.key, l.currency, sum(l.gross) as gross,
                min(l.number) as match_number, min(l.day) as first_day, max(l.day) as last_day,
                array_agg(l.tid) as tids
            from line l where {_HAS_KEY} group by 1, 2, 3 having bool_and(l.is_fee_likely)),
        matched as materialized (
            select l.match_number, l.tids as line_tids, i.tids as item_tids
            from line_group l cross join lateral (
                {_items_of_key("l", item_key, "array_agg(i.ctid) as tids")}) i
            where i.amount = l.gross and (l.first_day is null
                or l.last_day - i.first_day <= :days and i.last_day - l.first_day <= :days)),
        line_match as materialized (
            select unnest(line_tids) as tid, match_number from matched order by match_number),
        item_match as materialized (
            select unnest(item_tids) as tid, match_number from matched order by match_number)
        """,
    )


_IS_NEAR = (
    "l.line_type = c.line_type and l.currency = c.currency and l.gross = c.amount "
    "and abs(l.day - c.day) <= :days"
)


def _by_rank(rule: str, items: str) -> Query[_Rest]:
    """The pass in which lines without a key, or of a bank, match entries of the same amount: the
    first with the first, and so on. `items`: selects key, line_type, currency, amount, day, and the
    places of the entries, `tids`.

    Only lines and entries that are near each other have a rank, so the first two of an amount
    always match. The pass is repeated until nothing more matches. `of_payouts`: it matches lines of
    a bank with payouts, which a line that names something else does not pay.
    """
    return _pass(
        rule,
        f"""
        line as materialized (
            select s.ctid as tid, s.number, s.line_type, s.currency, {_GROSS} as gross,
                coalesce(s.value_date, s.booking_date) as day,
                s.line_type = any (cast(:ranked_types as text[]))
                    and case when :of_payouts then s.client_reference = '' else :is_bank
                        or (s.reference, s.charge_reference, s.client_reference) = ('', '', '') end
                    and {_IS_FEE_LIKELY} as is_ranked
            from staged_line s where {_REST}),
        ranked_line as materialized (select * from line where is_ranked),
        line_day as materialized (
            select distinct line_type, currency, gross, day from ranked_line),
        candidate as materialized ({items}),
        item_day as materialized (
            select distinct line_type, currency, amount, day from candidate),
        line_rank as (
            select l.*, row_number() over (partition by line_type, currency, gross
                order by day, number) as rank
            from ranked_line l where exists (select from item_day c where {_IS_NEAR})),
        item_rank as (
            select c.*, row_number() over (partition by line_type, currency, amount
                order by day, key) as rank
            from candidate c where exists (select from line_day l where {_IS_NEAR})),
        matched as materialized (
            select l.tid as line_tid, l.number, i.tids from line_rank l join item_rank i
                on i.line_type = l.line_type and i.currency = l.currency and i.amount = l.gross
                    and i.rank = l.rank
            where abs(l.day - i.day) <= :days),
        line_match as materialized (
            select line_tid as tid, number as match_number from matched order by number),
        item_match as materialized (
            select unnest(tids) as tid, number as match_number from matched order by number)
        """,
    )


_NEAR_LINES = f"""
    (i.account = any (cast(:ranked_accounts as text[])) or :of_payouts and {_IS_PAYOUT})
    and {_ITEM_DAY} between (select min(day) from line_day) - :days
        and (select max(day) from line_day) + :days
"""
_ONE_ITEM = f"""
    select i.book || ' ' || lpad(cast(i.sequence as text), 20, '0') || ' ' || i.entry_number as key,
        {_ITEM_TYPE} as line_type, i.currency, i.amount, {_ITEM_DAY} as day,
        array[i.ctid] as tids
    from open_item i where {_NEAR_LINES} and exists (
        select from line_day l where l.currency = i.currency and l.gross = i.amount)
"""
_ITEMS_OF_A_DAY = f"""
    select i.account || ' ' || {_ITEM_DAY} as key, {_ITEM_TYPE} as line_type, i.currency,
        sum(i.amount) as amount, {_ITEM_DAY} as day, array_agg(i.ctid) as tids
    from open_item i where {_NEAR_LINES} group by i.account, i.currency, {_ITEM_DAY}, 2
    having count(*) > 1
"""
_KEYS = (
    ("CHARGE_REFERENCE", "s.charge_reference", "i.external_reference"),
    ("REFERENCE", "s.reference", "i.external_reference"),
    ("SETTLEMENT_REFERENCE", "s.settlement_reference", "i.external_reference"),
    ("OUR_ID", _OUR_ID, "i.source_id"),
)
_FIRST_PASS = _by_unique_key(*_KEYS[0], _STAGED)
_KEY_PASSES = tuple(build(*keys, _REST) for keys in _KEYS for build in (_by_unique_key, _by_key))
_RANK_PASSES = (
    _by_rank("AMOUNT_AND_DATE", _ONE_ITEM),
    _by_rank("DAY", _ITEMS_OF_A_DAY),
)
_DELETE_MATCHED = text(f"""
    delete from staged_line s where {_STAGED}
        and s.ctid <> all (coalesce(cast(:rest as tid[]), array[]::tid[]))
""")
_ALL_OCCURRENCES = 2**31 - 1
# A line that equals one before it without a reference is a copy if that one has its entry.
_IS_REPEATED = """
    s.occurrence > 1 and ((s.reference, s.charge_reference, s.client_reference) <> ('', '', '')
        or exists (
            select from statement_line l where l.reference = s.reference
                and l.line_type = s.line_type and l.identity = s.identity
                and l.outcome = 'MATCHED'))"""


def _is_taken(condition: str) -> str:
    """Whether a line or a break has an entry with the type of a line already."""
    return f"""s.line_type in ('CHARGE', 'PAYOUT', 'PAYOUT_RETURN') and exists (
        select from closed_item c where {condition} and c.line_type = s.line_type
            and c.account = any (cast(:accounts as text[])))"""


_IS_CHARGE_TAKEN = _is_taken(
    "c.external_reference in (s.charge_reference, s.reference) and c.external_reference <> ''"
)
_IS_ORDER_TAKEN = _is_taken(f"c.source_id = {_OUR_ID}")
_SELECT_REST = f"""
    select s.number, s.line_type, s.currency, s.amount, s.fee, s.booking_date, s.reference,
        s.charge_reference, s.client_reference,
        s.reference <> '' and exists ({_EARLIER_LINE}) as is_correction,
        {_IS_REPEATED} as is_repeated, s.settlement_reference,
        {_IS_CHARGE_TAKEN} as is_charge_taken, {_IS_ORDER_TAKEN} as is_order_taken
    from staged_line s"""
_LIST_REST = Query(
    RestLine,
    f"""
    {_SELECT_REST} where s.file_number = :file_number and s.number > :after
    order by s.number limit :limit
    """,
)
_KEYS_OF_NAMES = ("charge_reference", "reference", "settlement_reference")
_LIST_NAMING = Query(
    RestLine,
    f"""
    {_SELECT_REST} cross join lateral (
        select from {named_entries("open_item", "s", _KEYS_OF_NAMES, of_any_type=":is_bank")} i
        where {_IN_ACCOUNTS}
        union all
        select from {named_entries("closed_item", "s", _KEYS_OF_NAMES)} i
        join break b on b.break_id = i.break_id
        where {_IN_ACCOUNTS} and b.state = 'OPEN' and b.kind = 'MISSING_IN_FILE'
        limit 1) i
    where s.file_number = :file_number order by s.number limit :limit
    """,
)
_COUNT_LINES = Query(
    LineCounts,
    """
    with line as (
        select true as is_unmatched, line_type from staged_line where file_number = :file_number
        union all
        select false, line_type from statement_line where file_number = :file_number)
    select count(*) filter (where is_unmatched) as unmatched_count, count(*) as line_count
    from line where line_type in ('CHARGE', 'PAYOUT', 'PAYOUT_RETURN', 'BANK_ENTRY')
    """,
)
_FIND_ITEMS = Query(
    ItemRow,
    f"""
    select {ITEM_COLUMNS} from open_item i where {_IN_ACCOUNTS} and (
        i.external_reference = any (cast(:references as text[])) and i.external_reference <> ''
        or i.source_id = any (cast(:source_ids as text[])))
    order by book, sequence, entry_number
    """,
)
_FIND_SHARED = Query(
    ItemRow,
    f"""
    select {ITEM_COLUMNS} from open_item i where {_IN_ACCOUNTS}
        and i.external_reference = any (cast(:references as text[]))
    order by book, sequence, entry_number
    """,
)
_LIST_OVERDUE = Query(
    ItemRow,
    f"""
    select {ITEM_COLUMNS} from open_item i
    where i.account = :account and i.currency = :currency and i.effective_time < :until
    order by i.effective_time, book, sequence, entry_number limit :limit
    """,
)
_FOUND_LINES = """
    with found as materialized (
        select s.tid, r.break_id, r.match_number from json_to_recordset(cast(:lines as json))
            as r (number bigint, break_id text, match_number bigint)
        cross join lateral (select s.ctid as tid from staged_line s
            where s.file_number = :file_number and s.number = r.number limit 1) s),
    moved as (delete from staged_line s where s.ctid = any (array(select tid from found)))"""
_FOUND_ITEMS = """
    with found as materialized (
        select i.tid, r.break_id, r.match_number from json_to_recordset(cast(:items as json))
            as r (book text collate "C", sequence bigint, entry_number int, break_id text,
                match_number bigint)
        cross join lateral (select i.ctid as tid from open_item i
            where (i.book, i.sequence, i.entry_number) = (r.book, r.sequence, r.entry_number)
            limit 1) i),
    moved as (delete from open_item i where i.ctid = any (array(select tid from found)))"""
_STORE_BREAK_LINES = text(f"""
    {_FOUND_LINES}
    insert into statement_line ({_STATEMENT_COLUMNS}, outcome, match_rule, break_id)
    select {_STATEMENT_COLUMNS}, 'BREAK', '', break_id
    from found f join staged_line s on s.ctid = f.tid
""")
_STORE_BREAK_ITEMS = text(f"""
    {_FOUND_ITEMS}
    insert into closed_item ({ITEM_COLUMNS}, break_id, is_own)
    select {ITEM_COLUMNS}, break_id, false from found f join open_item i on i.ctid = f.tid
""")
_STORE_MATCHED_LINES = text(f"""
    {_FOUND_LINES}
    insert into statement_line ({_STATEMENT_COLUMNS}, outcome, match_rule, match_number)
    select {_STATEMENT_COLUMNS}, 'MATCHED', 'SEVERAL_KEYS', match_number
    from found f join staged_line s on s.ctid = f.tid
""")
_STORE_MATCHED_ITEMS = text(f"""
    {_FOUND_ITEMS}
    insert into closed_item ({ITEM_COLUMNS}, file_number, match_number, is_own)
    select {ITEM_COLUMNS}, :file_number, match_number, false
    from found f join open_item i on i.ctid = f.tid
""")
_LINE_SUMS = Query(
    LineSums,
    """
    select statement_number, count(*) filter (where outcome = 'MATCHED') as matched_count,
        count(*) filter (where outcome = 'REPEATED') as repeated_count,
        sum(amount) filter (where outcome <> 'REPEATED') as amount,
        coalesce(sum(case when line_type = 'FEE' then -amount else fee end)
            filter (where outcome = 'MATCHED'), 0) as fee,
        max(booking_date) as last_day
    from statement_line where file_number = :file_number group by statement_number
    """,
)
_OTHER_ACCOUNT_SUMS = Query(
    AccountSum,
    """
    select account, currency, sum(amount) as amount from closed_item
    where file_number = :file_number and match_number is not null and account <> :account
    group by account, currency having sum(amount) <> 0 order by account, currency
    """,
)
_SETTLEMENT_LINES = Query(
    SettlementSum,
    """
    select coalesce(nullif(settlement_reference, ''), reference) as reference, currency,
        amount + fee as amount, coalesce(value_date, booking_date) as day, number, true as is_line
    from statement_line where file_number = :file_number and outcome = 'MATCHED'
        and line_type = 'SETTLEMENT' and amount + fee <> 0 order by number
    """,
)
# A copy or a correction of a line is no money that was paid.
_SETTLEMENT_SUMS = Query(
    SettlementSum,
    """
    with line as (
        select settlement_reference as reference, currency, amount, line_type, number,
            coalesce(value_date, booking_date) as day,
            outcome <> 'REPEATED' and (break_id is null or not exists (
                select from break b where b.break_id = l.break_id
                    and b.kind in ('DUPLICATE_LINE', 'LINE_CORRECTED'))) as is_paid
        from statement_line l where file_number = :file_number and settlement_reference <> '')
    select reference, currency, -sum(amount) filter (where is_paid) as amount,
        max(day) filter (where is_paid) as day, min(number) filter (where is_paid) as number,
        false as is_line
    from line group by reference, currency
    having not bool_or(line_type = 'SETTLEMENT') and sum(amount) filter (where is_paid) <> 0
    order by number
    """,
)
_BIG_STATEMENTS = text("""
    select set_config('statement_timeout', '300s', true),
        set_config('plan_cache_mode', 'force_custom_plan', true),
        set_config('work_mem', '128MB', true), set_config('jit', 'off', true),
        set_config('idle_in_transaction_session_timeout', '60s', true)
""")


def allow_big_statements(connection: Connection) -> None:
    """Gives the statements of this transaction time and memory for a million lines, and the process
    time between them for the lines that match nothing.
    """
    connection.execute(_BIG_STATEMENTS)


def match(
    connection: Connection,
    file: FileRow,
    accounts: Sequence[str],
    limits: MatchLimits,
    *,
    is_bank: bool,
) -> int:
    """Matches the staged lines of a file with open entries of accounts. Returns how many lines are
    left.
    """
    parameters: dict[str, Any] = {
        "file_number": file.file_number,
        "account": file.account,
        "accounts": list(accounts),
        "is_bank": is_bank,
        "days": limits.days,
        "fee_percent": limits.fee_percent,
        "ranked_types": ["BANK_ENTRY"] if is_bank else ["CHARGE", "PAYOUT", "PAYOUT_RETURN"],
    }
    has_duplicates = connection.execute(_NUMBER_DUPLICATES, parameters).rowcount > 0
    connection.execute(_MOVE_REPEATED, parameters)
    if not is_bank:
        connection.execute(_MOVE_BOOKED, parameters)
    connection.execute(_JOIN_BY_HASHING, {"others": "off"})
    rest = _match_rest(connection, parameters, has_duplicates=has_duplicates)
    connection.execute(_JOIN_BY_HASHING, {"others": "on"})
    connection.execute(_DELETE_MATCHED, {**parameters, "rest": rest.tids})
    return rest.line_count


def _match_rest(
    connection: Connection, parameters: dict[str, Any], *, has_duplicates: bool
) -> _Rest:
    """Matches the staged lines with entries. Returns those that are left."""
    rest = _FIRST_PASS.one(connection, **parameters, max_occurrence=_ALL_OCCURRENCES)
    for max_occurrence in (_ALL_OCCURRENCES, 1) if has_duplicates else (_ALL_OCCURRENCES,):
        for key_pass in _KEY_PASSES:
            if rest.line_count:
                parameters |= {"rest": rest.tids, "max_occurrence": max_occurrence}
                rest = key_pass.one(connection, **parameters)
    for rank_pass in _RANK_PASSES:
        for of_payouts in (False, True) if parameters["is_bank"] else (False,):
            accounts = [] if of_payouts else parameters["accounts"]
            parameters |= {"of_payouts": of_payouts, "ranked_accounts": accounts}
            count_before = -1
            while rest.line_count not in (0, count_before):
                count_before = rest.line_count
                rest = rank_pass.one(connection, **{**parameters, "rest": rest.tids})
    return rest


def list_rest(
    connection: Connection, file: FileRow, accounts: Sequence[str], after: int, limit: int
) -> list[RestLine]:
    """The lines that are left, in their order, after a number. `accounts`: of the entries that they
    could match.
    """
    return _LIST_REST.all(
        connection,
        file_number=file.file_number,
        account=file.account,
        accounts=list(accounts),
        after=after,
        limit=limit,
    )


def list_naming(
    connection: Connection, file: FileRow, accounts: Sequence[str], limit: int, *, is_bank: bool
) -> list[RestLine]:
    """The lines that are left and name open entries, or entries that no file had in time."""
    return _LIST_NAMING.all(
        connection,
        file_number=file.file_number,
        account=file.account,
        accounts=list(accounts),
        is_bank=is_bank,
        limit=limit,
    )


def count_lines(connection: Connection, file: FileRow) -> LineCounts:
    """How many lines could match, and how many of them are left."""
    return _COUNT_LINES.one(connection, file_number=file.file_number)


def find_items(
    connection: Connection,
    accounts: Sequence[str],
    references: Sequence[str],
    source_ids: Sequence[str],
    *,
    is_bank: bool,
) -> list[ItemRow]:
    """The open entries with one of the references or ids, and those that share their reference."""
    filters = {"accounts": list(accounts), "is_bank": is_bank}
    items = _FIND_ITEMS.all(
        connection, **filters, references=list(references), source_ids=list(source_ids)
    )
    shared = {item.external_reference for item in items} - {""} - set(references)
    if shared:
        items += _FIND_SHARED.all(connection, **filters, references=sorted(shared))
    return sorted(set(items))


def list_overdue(
    connection: Connection, account: str, currency: str, until: datetime, limit: int
) -> list[ItemRow]:
    """The oldest open entries of an account from before a time."""
    return _LIST_OVERDUE.all(
        connection, account=account, currency=currency, until=until, limit=limit
    )


def store_break_lines(
    connection: Connection, file: FileRow, lines: Sequence[tuple[int, str]]
) -> None:
    """Moves staged lines, by number, into breaks."""
    rows = [{"number": number, "break_id": break_id} for number, break_id in lines]
    connection.execute(
        _STORE_BREAK_LINES, {"file_number": file.file_number, "lines": encode_rows(rows)}
    )


def store_matches(
    connection: Connection,
    file: FileRow,
    lines: Sequence[tuple[int, int]],
    items: Sequence[tuple[ItemKey, int]],
) -> None:
    """Moves staged lines, by number, and open entries that match: each with the number of the first
    line that matches with them.
    """
    line_rows = [{"number": number, "match_number": match} for number, match in lines]
    item_rows = [{**key._asdict(), "match_number": match} for key, match in items]
    parameters = {"file_number": file.file_number}
    connection.execute(_STORE_MATCHED_LINES, {**parameters, "lines": encode_rows(line_rows)})
    connection.execute(_STORE_MATCHED_ITEMS, {**parameters, "items": encode_rows(item_rows)})


def store_break_items(connection: Connection, items: Sequence[tuple[ItemKey, str]]) -> int:
    """Moves open entries into breaks. Returns how many there still were."""
    rows = [{**key._asdict(), "break_id": break_id} for key, break_id in items]
    return connection.execute(_STORE_BREAK_ITEMS, {"items": encode_rows(rows)}).rowcount


def sum_lines(connection: Connection, file: FileRow) -> dict[int, LineSums]:
    """The sums of the lines of a file, by the number of their statement."""
    rows = _LINE_SUMS.all(connection, file_number=file.file_number)
    return {row.statement_number: row for row in rows}


def other_account_sums(connection: Connection, file: FileRow) -> list[AccountSum]:
    """The entries that the lines of a file match on other accounts than the file's."""
    return _OTHER_ACCOUNT_SUMS.all(connection, file_number=file.file_number, account=file.account)


def settlements(
    connection: Connection, file: FileRow, *, by_reference: bool
) -> list[SettlementSum]:
    """What the provider paid to the bank: the lines that say so, and `by_reference` the sums of the
    lines of each settlement without such a line. Below zero: it left the account.
    """
    found = _SETTLEMENT_LINES.all(connection, file_number=file.file_number)
    if by_reference:
        found += _SETTLEMENT_SUMS.all(connection, file_number=file.file_number)
    return found
