"""Changes of wallets, entries, holds and pending credits. Lock order: wallets by seller and
currency, then holds by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from tallystick_core.wallet.balances import Balances, Wallet, WalletChange
from tallystick_core.wallet.holds import Hold
from tallystick_core.wallet.instructions import Credit, Instruction, StoredInstruction
from tallystick_core.wallet.state import EntryKind, HoldState
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Query, Statement, columns, text

WalletKey = tuple[str, str]
"""Seller and currency."""

_OPEN_WALLETS = text("""
    insert into wallet (seller_account, currency, pending, available, held, owed, balance, version,
        frozen, release_delay, policy_version, update_time)
    select seller_account, currency, 0, 0, 0, 0, 0, 0, false, :release_delay, 0, clock()
    from json_to_recordset(cast(:wallets as json))
        as r (seller_account text collate "C", currency text collate "C")
        order by seller_account, currency
    on conflict do nothing
""")


class _LockedWalletRow(NamedTuple):
    seller_account: str
    currency: str
    pending: Decimal
    available: Decimal
    held: Decimal
    owed: Decimal
    version: int
    frozen: bool
    release_delay: int


_LOCK_WALLETS = Query(
    _LockedWalletRow,
    f"""
    select {columns(_LockedWalletRow, "w")}
    from wallet w join json_to_recordset(cast(:wallets as json))
        as r (seller_account text collate "C", currency text collate "C")
        on w.seller_account = r.seller_account and w.currency = r.currency
    order by w.seller_account, w.currency for update of w
    """,
)


def open_wallets(
    connection: Connection, keys: Sequence[WalletKey], release_delay_seconds: int
) -> None:
    """Opens missing wallets with the configured release delay in seconds."""
    connection.execute(
        _OPEN_WALLETS, {"wallets": encode_keys(keys), "release_delay": release_delay_seconds}
    )


def lock_wallets(connection: Connection, keys: Sequence[WalletKey]) -> dict[WalletKey, Wallet]:
    """Locks wallets in key order. Returns those that exist."""
    wallets = {}
    for row in _LOCK_WALLETS.all(connection, wallets=encode_keys(keys)):
        balances = Balances(int(row.pending), int(row.available), int(row.held), int(row.owed))
        wallet = Wallet(
            row.seller_account, row.currency, balances, row.version, row.frozen, row.release_delay
        )
        wallets[row.seller_account, row.currency] = wallet
    return wallets


def encode_keys(keys: Sequence[WalletKey]) -> str:
    """Encodes keys as one parameter for json_to_recordset."""
    return encode_rows(
        [{"seller_account": seller, "currency": currency} for seller, currency in keys]
    )


class _AppliedRow(NamedTuple):
    kind: str
    source_id: str
    fingerprint: bytes
    seller_account: str
    currency: str
    amount: int


_FIND_ENTRIES = Query(
    _AppliedRow,
    f"""
    select {columns(_AppliedRow, "e")}
        from json_to_recordset(cast(:source_ids as json)) as r (kind text, source_id text)
    join wallet_entry e on e.kind = r.kind and e.source_id = r.source_id
    """,
)


def find_entries(
    connection: Connection, source_ids: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], StoredInstruction]:
    """The given instructions (kind, source_id) that were applied before."""
    items = encode_rows([{"kind": kind, "source_id": source_id} for kind, source_id in source_ids])
    return {
        (row.kind, row.source_id): StoredInstruction(
            row.fingerprint, row.seller_account, row.currency, row.amount
        )
        for row in _FIND_ENTRIES.all(connection, source_ids=items)
    }


class HoldRow(NamedTuple):
    """A hold that is not a tombstone; amounts in minor units."""

    hold_id: str
    seller_account: str
    currency: str
    amount: int
    captured_amount: int
    purpose: str
    state: str
    caller: str
    expire_time: datetime | None
    create_time: datetime
    end_time: datetime | None


_FIND_HOLDS = Query(
    HoldRow,
    "select {columns} from hold where hold_id = any (cast(:ids as text[])) and state <> "
    "'TOMBSTONE' order by hold_id",
)
_ADD_TOMBSTONES = text("""
    insert into hold (hold_id, captured_amount, state, caller, create_time, end_time)
    select id, 0, 'TOMBSTONE', :caller, t.now, t.now from unnest(cast(:ids as text[]))
        as r (id), (select clock() as now) t order by id collate "C"
    on conflict do nothing
""")
_FIND_TOMBSTONES = text(
    "select hold_id from hold where hold_id = any (cast(:ids as text[])) and state = 'TOMBSTONE'"
)


def find_holds(connection: Connection, hold_ids: list[str]) -> dict[str, HoldRow]:
    """The current state of the holds that exist. Their wallet's lock protects them."""
    return {row.hold_id: row for row in _FIND_HOLDS.all(connection, ids=hold_ids)}


def add_tombstones(connection: Connection, hold_ids: list[str], caller: str) -> None:
    """Stores tombstones for holds that do not exist, so that none can be placed under these ids."""
    connection.execute(_ADD_TOMBSTONES, {"ids": hold_ids, "caller": caller})


def find_tombstones(connection: Connection, hold_ids: list[str]) -> set[str]:
    """The given ids that have a tombstone."""
    return set(connection.execute(_FIND_TOMBSTONES, {"ids": hold_ids}).scalars())


def as_hold(row: HoldRow) -> Hold:
    """Converts a row to the domain type."""
    return Hold(
        row.hold_id,
        row.seller_account,
        row.currency,
        row.amount,
        row.purpose,
        row.caller,
        row.captured_amount,
        HoldState(row.state),
        row.expire_time,
    )


class _CreditRow(NamedTuple):
    source_id: str
    seller_account: str
    currency: str
    amount: int
    is_pending: bool


_FIND_CREDITS = Query(
    _CreditRow,
    """
    select e.source_id, e.seller_account, e.currency, e.amount,
        p.source_id is not null as is_pending
    from unnest(cast(:source_ids as text[])) as r (source_id) join wallet_entry e
        on e.kind = 'CREDIT'
        and e.source_id = r.source_id
    left join pending_credit p on p.source_id = e.source_id
    """,
)


def find_credits(connection: Connection, source_ids: list[str]) -> dict[str, Credit]:
    """Credits that exist, by source id. Their wallet's lock protects whether they are pending."""
    return {
        row.source_id: Credit(row.seller_account, row.currency, row.amount, row.is_pending)
        for row in _FIND_CREDITS.all(connection, source_ids=source_ids)
    }


@dataclass(frozen=True, slots=True)
class DecidedInstruction:
    """A change to store, with the trace context of the call that requested it."""

    instruction: Instruction
    change: WalletChange
    traceparent: str


# Some tables change only with certain instructions. Their parts are left out otherwise, because an
# insert or update of no rows still runs the triggers of its table.
_OPTIONAL_PARTS = {
    "pending": """
    pending as (
        insert into pending_credit (source_id, seller_account, currency, amount, release_time)
        select source_id, seller_account, currency, amount, now + make_interval(secs => delay)
        from json_to_recordset(cast(:pending as json))
            as r (source_id text, seller_account text collate "C", currency text collate "C",
            amount bigint, delay int), t)""",
    "released": """
    released as (
        delete from pending_credit where source_id = any (array(
            select source_id from json_to_recordset(cast(:released as json))
                as r (source_id text))))""",
    "placed": """
    placed as (
        insert into hold (hold_id, seller_account, currency, amount, captured_amount, purpose,
            state, caller, expire_time, create_time)
        select hold_id, seller_account, currency, amount, 0, purpose, 'OPEN', caller, expire_time,
            now
        from json_to_recordset(cast(:placed as json))
            as r (hold_id text, seller_account text collate "C", currency text collate "C",
            amount bigint, purpose text, caller text,
            expire_time timestamptz), t)""",
    "ended": """
    ended as (
        update hold set state = r.state, captured_amount = r.captured_amount, end_time = t.now
        from json_to_recordset(cast(:ended as json))
            as r (hold_id text, state text, captured_amount bigint), t
        where hold.hold_id = r.hold_id and hold.state = 'OPEN')""",
}


_WALLET_PATH = "'wallets/' || seller_account || '/' || currency"


@cache
def _write_statement(parts: tuple[str, ...]) -> Statement:
    """The statement that writes changes, with these optional parts."""
    return text(f"""
    with t as materialized (select cast(:now as timestamptz) as now),
    e as (
        insert into wallet_entry (seller_account, currency, number, kind, source_id, caller,
            fingerprint, amount, pending_after, available_after, held_after,
            owed_after, traceparent, create_time)
        select seller_account, currency, number, kind, source_id, caller,
            decode(fingerprint, 'hex'),
            amount, pending, available, held, owed, traceparent, now
        from json_to_recordset(cast(:entries as json))
            as r (seller_account text collate "C", currency text collate "C", number bigint,
            kind text, source_id text, caller text,
            fingerprint text, amount bigint, pending numeric, available numeric, held numeric,
                owed numeric, traceparent text), t
        returning seller_account, currency, number),
    {insert_into_outbox("e", _WALLET_PATH, "number", "cast(:events as bytea)")}
    {"".join(f", {_OPTIONAL_PARTS[part]}" for part in parts)}
    update wallet w set pending = r.pending, available = r.available, held = r.held,
            owed = r.owed,
            balance = r.pending + r.available + r.held - r.owed, version = r.version,
            update_time = greatest(w.update_time, t.now)
        from json_to_recordset(cast(:wallets as json))
            as r (seller_account text collate "C", currency text collate "C", pending numeric,
            available numeric, held numeric,
            owed numeric, version bigint), t
        where w.seller_account = r.seller_account and w.currency = r.currency
    """)


def write(
    connection: Connection,
    changes: Sequence[DecidedInstruction],
    change_time: datetime,
    events: bytes,
) -> None:
    """Writes changes of locked wallets in order: entries, holds, and each wallet once. `events`: a
    serialized BatchPublishRequest with the events of these changes.
    """
    changed_wallets: dict[WalletKey, Wallet] = {}
    entries: list[dict[str, Any]] = []
    optional_rows: dict[str, list[Any]] = {part: [] for part in _OPTIONAL_PARTS}
    for item in changes:
        wallet, hold = item.change.wallet, item.change.hold
        changed_wallets[wallet.seller_account, wallet.currency] = wallet
        entries.append(_entry_columns(item))
        if item.change.adds_pending:
            optional_rows["pending"].append(_pending_columns(item))
        if item.instruction.kind is EntryKind.RELEASE:
            optional_rows["released"].append({"source_id": item.instruction.source_id})
        if hold is not None and item.instruction.kind is EntryKind.HOLD_PLACED:
            optional_rows["placed"].append(hold)
        elif hold is not None:
            optional_rows["ended"].append(
                {
                    "hold_id": hold.hold_id,
                    "state": hold.state,
                    "captured_amount": hold.captured_amount,
                }
            )
    wallets = [
        {**_balance_columns(wallet), "version": wallet.version}
        for wallet in changed_wallets.values()
    ]
    present_rows = {part: encode_rows(rows) for part, rows in optional_rows.items() if rows}
    parameters = {
        "now": change_time,
        "events": events,
        "entries": encode_rows(entries),
        "wallets": encode_rows(wallets),
        **present_rows,
    }
    connection.execute(_write_statement(tuple(present_rows)), parameters)


def _pending_columns(item: DecidedInstruction) -> dict[str, Any]:
    wallet = item.change.wallet
    return {
        "source_id": item.instruction.source_id,
        "seller_account": wallet.seller_account,
        "currency": wallet.currency,
        "amount": item.change.amount,
        "delay": wallet.release_delay,
    }


def _balance_columns(wallet: Wallet) -> dict[str, Any]:
    balances = wallet.balances
    parts = {
        "pending": str(balances.pending),
        "available": str(balances.available),
        "held": str(balances.held),
        "owed": str(balances.owed),
    }
    return {"seller_account": wallet.seller_account, "currency": wallet.currency, **parts}


def _entry_columns(item: DecidedInstruction) -> dict[str, Any]:
    return {
        **_balance_columns(item.change.wallet),
        "number": item.change.wallet.version,
        "kind": item.instruction.kind,
        "source_id": item.instruction.source_id,
        "caller": item.instruction.caller,
        "fingerprint": item.instruction.fingerprint.hex(),
        "amount": item.change.amount,
        "traceparent": item.traceparent,
    }
