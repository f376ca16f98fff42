"""Matches the lines of a file with the ledger's entries, a set at a time.

Each pass moves the staged lines that match to statement_line, and the entries that they match from
open_item to closed_item, in one statement. What is left after the last pass is a break.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tallystick_storage.reconciliation.ledger_items import CLOSED_COLUMNS
from tallystick_storage.reconciliation.lines_without_entry import move_lines_without_entry
from tallystick_storage.reconciliation.named_entries import (
    AT_BANK,
    IN_ACCOUNTS,
    IS_PAYOUT,
    our_id,
    same_entry,
)
from tallystick_storage.reconciliation.statement_files import FileRow
from tallystick_storage.reconciliation.statement_lines import STATEMENT_COLUMNS
from tallystick_storage.sql import Connection, Query, text


@dataclass(frozen=True, slots=True)
class MatchLimits:
    """What may differ between a line and an entry that match: days, and the part of a charge that
    its fee is at most, in percent.
    """

    days: int
    fee_percent: int


_ITEM_TYPE = "case when :is_bank then 'BANK_ENTRY' else i.line_type end"


def _to_day(time: str) -> str:
    """The date of a time of the ledger: that of UTC."""
    return f"cast({time} at time zone 'UTC' as date)"


_ITEM_DAY = _to_day("i.effective_time")
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
            insert into statement_line ({STATEMENT_COLUMNS}, outcome, match_rule, match_number)
            select {STATEMENT_COLUMNS}, 'MATCHED', '{rule}', m.match_number
            from line_match m join staged_line s on s.ctid = m.tid
            where s.ctid = any (array(select tid from line_match))),
        closed as (
            insert into closed_item ({CLOSED_COLUMNS}, file_number, match_number, is_own)
            select {CLOSED_COLUMNS}, :file_number, m.match_number, false
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
        select sum(i.amount) as amount, {_to_day("min(i.effective_time)")} as first_day,
            {_to_day("max(i.effective_time)")} as last_day, {place}
        from ledger_item i cross join lateral (
            select o.ctid as tid from open_item o where {same_entry("o", "i")} limit 1) o
        where {item_key} = {line}.key and {item_key} <> '' and i.currency = {line}.currency
            and {_ITEM_TYPE} = {line}.line_type and {IN_ACCOUNTS}"""


def _look_up_only_item(item_key: str) -> str:
    """Joins the line `l` with the only entry that has its key: one lookup for each line."""
    items = _items_of_key("l", item_key, "min(o.tid) as tid")
    return f"cross join lateral ({items} having count(*) = 1) i"


# Reads all open entries once, which costs a quarter of a lookup for each.
_ONLY_OPEN_ITEM = f"""
    join (
        select i.external_reference as key, i.currency, {_ITEM_TYPE} as line_type,
            min(i.ctid) as tid, min(i.amount) as amount,
            {_to_day("min(i.effective_time)")} as first_day
        from open_item i where i.external_reference <> '' and {IN_ACCOUNTS}
        group by 1, 2, 3 having count(*) = 1) i
    on i.key = l.key and i.currency = l.currency and i.line_type = l.line_type"""


def _by_unique_key(rule: str, line_key: str, lines: str, only_item: str) -> Query[_Rest]:
    """The pass in which a line with a key that no other has matches the only entry with it.
    `only_item`: joins this entry.
    """
    return _pass(
        rule,
        f"""
        line as materialized ({_lines(lines, line_key)}),
        repeated as (
            select l.line_type, l.key from line l where {_HAS_KEY} group by 1, 2
            having count(*) > 1),
        matched as materialized (
            select l.tid as line_tid, l.number, i.tid as item_tid
            from line l {only_item}
            where {_HAS_KEY} and l.is_fee_likely
                and (l.line_type, l.key) not in (select line_type, key from repeated)
                and i.amount = l.gross
                and (l.day is null or abs(l.day - i.first_day) <= :days)
            order by l.number),
        line_match as not materialized (
            select line_tid as tid, number as match_number from matched),
        item_match as not materialized (
            select item_tid as tid, number as match_number from matched)
        """,
    )


def _by_key(rule: str, line_key: str, lines: str, item_key: str) -> Query[_Rest]:
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
                {_items_of_key("l", item_key, "array_agg(o.tid) as tids")}) i
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
    (i.account = any (cast(:ranked_accounts as text[])) or :of_payouts and {IS_PAYOUT})
    and {_ITEM_DAY} between (select min(day) from line_day) - :days
        and (select max(day) from line_day) + :days
"""
_ONE_ITEM = f"""
    select i.book || ' ' || lpad(cast(i.sequence as text), 20, '0') || ' ' || i.entry_number as key,
        {_ITEM_TYPE} as line_type, i.currency, i.amount, {_ITEM_DAY} as day,
        array[i.tid] as tids
    from {{items}} i where {_NEAR_LINES}
"""
_WITH_AN_AMOUNT = """
    (select i.*, i.ctid as tid from open_item i where exists (
        select from line_day l where l.currency = i.currency and l.gross = i.amount))"""
# One lookup for each amount of the lines. Only the entries that a bank can have are in the index.
_WITH_AN_AMOUNT_AT_BANK = f"""
    (select i.* from (select distinct currency, gross from line_day) l cross join lateral (
        select i.*, i.ctid as tid from open_item i
        where i.amount = l.gross and i.currency = l.currency and {AT_BANK} offset 0) i)"""
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
_FIRST_PASS_OF_MANY = _by_unique_key(*_KEYS[0][:2], _STAGED, _ONLY_OPEN_ITEM)
_FIRST_PASS = _by_unique_key(*_KEYS[0][:2], _STAGED, _look_up_only_item(_KEYS[0][2]))
_KEY_PASSES = tuple(
    key_pass
    for rule, line_key, item_key in _KEYS
    for key_pass in (
        _by_unique_key(rule, line_key, _REST, _look_up_only_item(item_key)),
        _by_key(rule, line_key, _REST, item_key),
    )
)
_DAY_PASS = _by_rank("DAY", _ITEMS_OF_A_DAY)
_RANK_PASSES = (
    _by_rank("AMOUNT_AND_DATE", _ONE_ITEM.format(items=_WITH_AN_AMOUNT)),
    _DAY_PASS,
)
_RANK_PASSES_OF_BANKS = (
    _by_rank("AMOUNT_AND_DATE", _ONE_ITEM.format(items=_WITH_AN_AMOUNT_AT_BANK)),
    _DAY_PASS,
)
_DELETE_MATCHED = text(f"""
    delete from staged_line s where {_STAGED}
        and s.ctid <> all (coalesce(cast(:rest as tid[]), array[]::tid[]))
""")
_ALL_OCCURRENCES = 2**31 - 1
_MAX_OPEN_ITEMS_PER_LINE = 4
_COUNT_OPEN = text(f"""
    select count(*) from (select from open_item i where {IN_ACCOUNTS} limit :limit) i
""")
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
        "accounts": list(accounts),
        "is_bank": is_bank,
        "days": limits.days,
        "fee_percent": limits.fee_percent,
        "ranked_types": ["BANK_ENTRY"] if is_bank else ["CHARGE", "PAYOUT", "PAYOUT_RETURN"],
    }
    has_duplicates = move_lines_without_entry(connection, file, is_bank=is_bank)
    connection.execute(_JOIN_BY_HASHING, {"others": "off"})
    first_pass = _FIRST_PASS
    if _has_few_open_items(connection, parameters, _MAX_OPEN_ITEMS_PER_LINE * file.line_count):
        first_pass = _FIRST_PASS_OF_MANY
    rest = _match_rest(connection, parameters, first_pass, has_duplicates=has_duplicates)
    connection.execute(_JOIN_BY_HASHING, {"others": "on"})
    connection.execute(_DELETE_MATCHED, {**parameters, "rest": rest.tids})
    return rest.line_count


def _has_few_open_items(connection: Connection, parameters: dict[str, Any], max_count: int) -> bool:
    """Whether at most `max_count` entries are open on the accounts of a file."""
    count = connection.execute(_COUNT_OPEN, {**parameters, "limit": max_count + 1}).scalar_one()
    return int(count) <= max_count


def _match_rest(
    connection: Connection,
    parameters: dict[str, Any],
    first_pass: Query[_Rest],
    *,
    has_duplicates: bool,
) -> _Rest:
    """Matches the staged lines with entries. Returns those that are left."""
    rest = first_pass.one(connection, **parameters, max_occurrence=_ALL_OCCURRENCES)
    for max_occurrence in (_ALL_OCCURRENCES, 1) if has_duplicates else (_ALL_OCCURRENCES,):
        for key_pass in _KEY_PASSES:
            if rest.line_count:
                parameters |= {"rest": rest.tids, "max_occurrence": max_occurrence}
                rest = key_pass.one(connection, **parameters)
    for rank_pass in _RANK_PASSES_OF_BANKS if parameters["is_bank"] else _RANK_PASSES:
        for of_payouts in (False, True) if parameters["is_bank"] else (False,):
            accounts = [] if of_payouts else parameters["accounts"]
            parameters |= {"of_payouts": of_payouts, "ranked_accounts": accounts}
            count_before = -1
            while rest.line_count not in (0, count_before):
                count_before = rest.line_count
                rest = rank_pass.one(connection, **{**parameters, "rest": rest.tids})
    return rest
