"""Breaks: their changes, and their rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.pagination import PageKey, newest_first
from tallystick_storage.reconciliation.ledger_items import ItemRow
from tallystick_storage.reconciliation.named_entries import named_entries, same_entry
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(slots=True)
class NewBreak:
    """A break as it is found. `difference`: decimal text of minor units."""

    break_id: str
    kind: str
    rule_version: int
    break_class: str
    account: str
    currency: str
    difference: str
    detail: str
    file_number: int | None
    statement_file_id: str = ""


@dataclass(frozen=True, slots=True)
class BreakRow:
    """A break."""

    break_id: str
    kind: str
    rule_version: int
    break_class: str
    account: str
    currency: str
    difference: Decimal
    detail: str
    file_number: int | None
    statement_file_id: str
    state: str
    assignee: str
    resolution: str | None
    proposed_by: str
    version: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class ChangedBreak(BreakRow):
    """A break that a statement changed, and the outbox row of its event."""

    outbox_sequence: int


@dataclass(slots=True)
class NewChange:
    """The next change of a break: what it is after it, and what is kept of it."""

    break_id: str
    version: int
    state: str
    assignee: str
    resolution: str | None
    proposed_by: str
    action: str
    caller: str
    reason: str
    break_class: str | None = None
    """None: as before."""


class ChangeRow(NamedTuple):
    """A change of a break."""

    break_id: str
    version: int
    action: str
    caller: str
    reason: str
    resolution: str | None
    assignee: str
    create_time: datetime


class CancelledBreaks(NamedTuple):
    """Breaks that cancel each other out."""

    break_ids: list[str]


class RuleRow(NamedTuple):
    """A rule that replaces one that is built in."""

    kind: str
    version: int
    break_class: str
    rule_limit: int
    caller: str
    reason: str
    create_time: datetime


class BreakFilter(NamedTuple):
    """The breaks of a list; None does not filter."""

    state: str | None
    break_class: str | None
    kind: str | None
    account: str | None
    assignee: str | None
    statement_file_id: str | None


class BreakItemRow(NamedTuple):
    """A ledger entry in a break."""

    break_id: str
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


@dataclass(frozen=True, slots=True)
class KindCount:
    """How many breaks of a kind a file has."""

    kind: str
    break_class: str
    count: int


_NEW = columns(NewBreak)
_ROW = columns(BreakRow)
_INSERT = Query(
    ChangedBreak,
    f"""
    with new as (
        insert into break ({_NEW}, state, assignee, resolution, proposed_by, version, create_time,
            update_time)
        select {columns(NewBreak, "r")}, 'OPEN', '', null, '', 1, :time, :time
        from json_to_recordset(cast(:breaks as json)) as r (break_id text collate "C", kind text,
            rule_version int, break_class text, account text collate "C",
            currency text collate "C", difference numeric, detail text, file_number bigint,
            statement_file_id text)
        order by r.break_id
        returning *),
    change as (
        insert into break_change (break_id, version, action, caller, reason, resolution, assignee,
            traceparent, create_time)
        select break_id, 1, 'FOUND', :caller, detail, null, '', :traceparent, create_time from new),
    {insert_into_outbox("new", "'breaks/' || break_id")}
    select {columns(BreakRow, "new")}, sequence as outbox_sequence from new, outbox_sequence
    """,
)
_CHANGE = Query(
    ChangedBreak,
    f"""
    with change as materialized (
        select r.* from json_to_recordset(cast(:changes as json)) as r (break_id text collate "C",
            version bigint, state text, assignee text, resolution text, proposed_by text,
            action text, caller text, reason text, break_class text)),
    changed as (
        update break b set version = c.version, state = c.state, assignee = c.assignee,
            resolution = c.resolution, proposed_by = c.proposed_by,
            break_class = coalesce(c.break_class, b.break_class),
            update_time = greatest(b.update_time, :time)
        from change c where b.break_id = c.break_id
            and b.break_id = any (array(select break_id from change))
        returning b.*),
    stored as (
        insert into break_change (break_id, version, action, caller, reason, resolution, assignee,
            traceparent, create_time)
        select c.break_id, c.version, c.action, c.caller, c.reason, c.resolution, c.assignee,
            :traceparent, b.update_time
        from change c join changed b on b.break_id = c.break_id),
    {insert_into_outbox("changed", "'breaks/' || break_id")}
    select {columns(BreakRow, "changed")}, sequence as outbox_sequence from changed, outbox_sequence
    """,
)
_LOCK = Query(
    BreakRow,
    """
    select {columns} from break where break_id = any (cast(:ids as text[]))
    order by break_id collate "C" for update
    """,
)
_LOCK_UNLOCKED = Query(
    BreakRow,
    """
    select {columns} from break where break_id = any (cast(:ids as text[]))
    order by break_id collate "C" for update skip locked
    """,
)
_FIND = Query(BreakRow, "select {columns} from break where break_id = any (cast(:ids as text[]))")
_CHANGES = Query(
    ChangeRow, "select {columns} from break_change where break_id = :break_id order by version"
)
_LAST_CHANGE = Query(
    ChangeRow,
    """
    select {columns} from break_change
    where break_id = :break_id and action = any (cast(:actions as text[]))
    order by version desc limit 1
    """,
)
_BREAK_ITEM = f"c.break_id, {columns(ItemRow, 'i')}"
_ITEMS = Query(
    BreakItemRow,
    f"""
    with item as materialized (
        select * from closed_item where break_id = any (cast(:break_ids as text[]))
        order by break_id, book, sequence, entry_number limit :limit)
    select {_BREAK_ITEM} from item c cross join lateral (
        select * from ledger_item i where {same_entry("i", "c")} limit 1) i
    order by c.break_id, c.book, c.sequence, c.entry_number
    """,
)
_LIST = f"select {_ROW} from break {{where}} order by create_time desc, break_id desc limit :limit"
_FILTERS = {
    "state": "state = :state",
    "break_class": "break_class = :break_class",
    "kind": "kind = :kind",
    "account": "account = :account",
    "assignee": "assignee = :assignee",
    "statement_file_id": (
        "file_number = (select file_number from statement_file "
        "where statement_file_id = :statement_file_id)"
    ),
}
_COUNT_BY_KIND = Query(
    KindCount,
    """
    select kind, break_class, count(*) as count from break where file_number = :file_number
    group by kind, break_class order by kind, break_class
    """,
)
_KEYS_OF_NAMES = ("charge_reference", "reference")
_IN_ACCOUNTS = "i.account in (b.account, 'payouts/' || substr(b.account, 5))"
_LIST_WAITING = Query(
    BreakRow,
    f"""
    select {_ROW} from break b cross join lateral (
        select from statement_line l cross join lateral (
            select from {named_entries("open_item", "l", _KEYS_OF_NAMES)} i where {_IN_ACCOUNTS}
            union all
            select from {named_entries("closed_item", "l", _KEYS_OF_NAMES)} i
            where {_IN_ACCOUNTS} and b.break_class = 'AUTOMATIC'
            limit 1) i
        where l.break_id = b.break_id limit 1) l
    where b.state = 'OPEN' and b.kind = any (cast(:kinds as text[])) and b.break_id > :after
    order by b.break_id limit :limit
    """,
)
# `break_id is not null` is outside of the lookup. Inside, a planner whose statistics have no entry
# in a break reads all of closed_item_by_break for each entry.
_LOCK_MISSING = Query(
    BreakItemRow,
    f"""
    with item as materialized (
        select {_BREAK_ITEM} from ledger_item i cross join lateral (
            select c.break_id from closed_item c where {same_entry("c", "i")} limit 1) c
        where c.break_id is not null and (
            i.external_reference = any (cast(:references as text[])) and i.external_reference <> ''
            or i.source_id = any (cast(:source_ids as text[])))),
    missing as materialized (
        select b.break_id from break b where b.break_id = any (array(select break_id from item))
            and b.state = 'OPEN' and b.kind = 'MISSING_IN_FILE' and b.account = :account
        order by b.break_id for update)
    select {columns(BreakItemRow, "i")} from item i
    where i.break_id = any (array(select break_id from missing)) order by i.break_id
    """,
)
# a transfer that was reversed before it reached the seller, for example, is in no ledger
_LIST_CANCELLED = Query(
    CancelledBreaks,
    """
    select array_agg(distinct b.break_id order by b.break_id) as break_ids
    from break b cross join lateral (
        select l.* from statement_line l where l.break_id = b.break_id offset 0) l
    where b.state = 'OPEN' and b.account = :account and b.kind = any (cast(:kinds as text[]))
        and l.charge_reference <> ''
    group by l.charge_reference, l.currency
    having sum(l.amount + l.fee) = 0 and count(distinct l.break_id) > 1
        and bool_or(b.file_number = :file_number)
    order by 1
    """,
)
_LIST_REMAINING = Query(
    BreakRow,
    """
    select {columns} from break b
    where (state in ('OPEN', 'AWAITING_APPROVAL') or resolution = 'ACCEPT')
        and kind = any (cast(:kinds as text[])) and not (state = 'RESOLVED' and exists (
            select from break_change c where c.break_id = b.break_id and c.action = 'COMMENTED'
                and (c.caller, c.reason) = (:caller, :comment) and c.version > (
                    select max(d.version) from break_change d where d.break_id = b.break_id
                        and d.action in ('RESOLVED', 'APPROVED'))))
    order by create_time, break_id
    """,
)
_LIST_RULES = Query(
    RuleRow,
    "select distinct on (kind) {columns} from break_rule order by kind, version desc",
)
_INSERT_RULE = text("""
    insert into break_rule (kind, version, break_class, rule_limit, caller, reason, create_time)
    values (:kind, :version, :break_class, :rule_limit, :caller, :reason, clock())
    on conflict do nothing
""")


def id_of_entry(book: str, sequence: int, entry_number: int) -> str:
    """The id of the break that a ledger entry opens: an entry is in one break at most."""
    return f"i-{book}-{sequence}-{entry_number}"


def insert(
    connection: Connection,
    breaks: Sequence[NewBreak],
    caller: str,
    traceparent: str,
    time: datetime,
) -> list[ChangedBreak]:
    """Stores breaks as they are found."""
    return _INSERT.all(
        connection, breaks=encode_rows(breaks), caller=caller, traceparent=traceparent, time=time
    )


def change(
    connection: Connection, changes: Sequence[NewChange], traceparent: str, time: datetime
) -> list[ChangedBreak]:
    """Stores the next change of locked breaks."""
    return _CHANGE.all(connection, changes=encode_rows(changes), traceparent=traceparent, time=time)


def lock(connection: Connection, break_ids: Sequence[str]) -> dict[str, BreakRow]:
    """The breaks that exist, locked in the order of their ids."""
    return {row.break_id: row for row in _LOCK.all(connection, ids=list(break_ids))}


def lock_unlocked(connection: Connection, break_ids: Sequence[str]) -> dict[str, BreakRow]:
    """The breaks that exist and that nobody else has locked, locked. For a transaction that has
    locked others: it does not wait, so it is in no deadlock.
    """
    return {row.break_id: row for row in _LOCK_UNLOCKED.all(connection, ids=list(break_ids))}


def find(connection: Connection, break_ids: Sequence[str]) -> dict[str, BreakRow]:
    """The breaks that exist."""
    return {row.break_id: row for row in _FIND.all(connection, ids=list(break_ids))}


def changes_of(connection: Connection, break_id: str) -> list[ChangeRow]:
    """The changes of a break, oldest first."""
    return _CHANGES.all(connection, break_id=break_id)


def last_change(connection: Connection, break_id: str, actions: Iterable[str]) -> ChangeRow | None:
    """The last change of a break that was one of these actions."""
    return _LAST_CHANGE.one_or_none(connection, break_id=break_id, actions=list(actions))


def items_of(
    connection: Connection, break_ids: Sequence[str], limit: int | None = None
) -> list[BreakItemRow]:
    """The ledger entries in breaks, or the first of them."""
    return _ITEMS.all(connection, break_ids=list(break_ids), limit=limit)


def list_breaks(
    connection: Connection, filters: BreakFilter, before: PageKey | None, limit: int
) -> list[BreakRow]:
    """Breaks, newest first."""
    where, values = newest_first(_FILTERS, filters, "(create_time, break_id)", before)
    return Query(BreakRow, _LIST.format(where=where)).all(connection, **values, limit=limit)


def count_by_kind(connection: Connection, file_number: int) -> list[KindCount]:
    """How many breaks of each kind were found in a file."""
    return _COUNT_BY_KIND.all(connection, file_number=file_number)


def list_waiting(
    connection: Connection, kinds: Iterable[str], after: str, limit: int
) -> list[BreakRow]:
    """Open breaks of these kinds for which the ledger has entries now, in the order of their ids,
    after one of them. An entry that is not open any more counts for those that are AUTOMATIC.
    """
    return _LIST_WAITING.all(connection, kinds=list(kinds), after=after, limit=limit)


def lock_missing(
    connection: Connection, account: str, references: Sequence[str], source_ids: Sequence[str]
) -> list[BreakItemRow]:
    """The entries of an account that open breaks miss in the files, and that have one of the
    references or ids. The breaks are locked.
    """
    return _LOCK_MISSING.all(
        connection, account=account, references=list(references), source_ids=list(source_ids)
    )


def list_cancelled(
    connection: Connection, account: str, file_number: int, kinds: Iterable[str]
) -> list[Sequence[str]]:
    """Open breaks of these kinds whose lines are about the same charge or transfer and cancel each
    other out, one of them found in a file: their ids, by charge.
    """
    rows = _LIST_CANCELLED.all(
        connection, account=account, file_number=file_number, kinds=sorted(kinds)
    )
    return [row.break_ids for row in rows]


def list_remaining(
    connection: Connection, kinds: Sequence[str], caller: str, comment: str
) -> list[BreakRow]:
    """The breaks of these kinds that are not resolved or were accepted, oldest first; without those
    on which the caller has made this comment since they were accepted.
    """
    return _LIST_REMAINING.all(connection, kinds=list(kinds), caller=caller, comment=comment)


def list_rules(connection: Connection) -> list[RuleRow]:
    """The last version of each rule that replaces one that is built in."""
    return _LIST_RULES.all(connection)


def insert_rule(
    connection: Connection,
    kind: str,
    version: int,
    break_class: str,
    rule_limit: int,
    caller: str,
    reason: str,
) -> bool:
    """Stores the next version of a rule. Returns False if there is one already."""
    parameters = {
        "kind": kind,
        "version": version,
        "break_class": break_class,
        "rule_limit": rule_limit,
        "caller": caller,
        "reason": reason,
    }
    return connection.execute(_INSERT_RULE, parameters).rowcount == 1
