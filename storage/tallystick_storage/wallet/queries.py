"""Reads of wallets, their entries and holds, and of what is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tallystick_core.wallet.state import EntryKind
from tallystick_storage.pagination import PageKey, before_parameters
from tallystick_storage.sql import Connection, Query, columns
from tallystick_storage.wallet.wallets import HoldRow, WalletKey, encode_keys

DueCursor = tuple[datetime, str]
"""The position in the list of what is due: the time since which it is due, and its source id."""


@dataclass(frozen=True, slots=True)
class WalletRow:
    """A wallet; amounts in minor units, `release_delay` in seconds."""

    seller_account: str
    currency: str
    balance: Decimal
    pending: Decimal
    available: Decimal
    held: Decimal
    owed: Decimal
    frozen: bool
    release_delay: int
    policy_version: int
    version: int
    update_time: datetime


class EntryRow(NamedTuple):
    """An entry of a wallet, with the balances after it; amounts in minor units."""

    seller_account: str
    currency: str
    number: int
    kind: str
    source_id: str
    amount: int
    pending_after: Decimal
    available_after: Decimal
    held_after: Decimal
    owed_after: Decimal
    create_time: datetime


_FIND_WALLETS = Query(
    WalletRow,
    """
    select {columns} from wallet join json_to_recordset(cast(:wallets as json))
        as r (seller_account text collate "C", currency text collate "C")
        using (seller_account, currency)
    """,
)
_LIST_WALLETS = Query(
    WalletRow,
    """
    select {columns} from wallet
    where (:seller_account = '' or seller_account = :seller_account)
        and (seller_account, currency) > (:after_seller, :after_currency)
    order by seller_account, currency limit :limit
    """,
)
_LIST_WALLETS_IN_CURRENCY = Query(
    WalletRow,
    """
    select {columns} from wallet
    where (:seller_account = '' or seller_account = :seller_account) and currency = :currency
        and seller_account > :after_seller
    order by seller_account limit :limit
    """,
)
_LIST_ENTRIES = Query(
    EntryRow,
    """
    select {columns} from wallet_entry
    where seller_account = :seller_account and currency = :currency and number < :before
    order by number desc limit :limit
    """,
)
# The kinds are listed because the index of sources begins with them.
_LIST_ENTRIES_OF_SOURCE = Query(
    EntryRow,
    f"""
    select {columns(EntryRow)} from wallet_entry
    where kind = any (array[{", ".join(f"'{kind}'" for kind in EntryKind)}])
        and source_id = :source_id
        and seller_account = :seller_account and currency = :currency and number < :before
    order by number desc limit :limit
    """,
)
_LIST_ENTRIES_OF_SOURCES = Query(
    EntryRow,
    f"""
    select {columns(EntryRow)} from wallet_entry
    where kind = any (array[{", ".join(f"'{kind}'" for kind in EntryKind)}])
        and source_id = any (cast(:source_ids as text[]))
    order by create_time desc, seller_account, currency, number desc limit :limit
    """,
)


_MAX_ENTRY_NUMBER = 2**62


def find_wallets(connection: Connection, keys: Sequence[WalletKey]) -> dict[WalletKey, WalletRow]:
    """The current state of the wallets that exist."""
    return {
        (row.seller_account, row.currency): row
        for row in _FIND_WALLETS.all(connection, wallets=encode_keys(keys))
    }


def list_wallets(
    connection: Connection, filters: WalletKey, after: WalletKey | None, limit: int
) -> Sequence[WalletRow]:
    """Wallets by seller and currency, after a given one. An empty filter matches everything."""
    seller, currency = filters
    after_seller, after_currency = after or ("", "")
    if currency:
        return _LIST_WALLETS_IN_CURRENCY.all(
            connection,
            seller_account=seller,
            currency=currency,
            after_seller=after_seller,
            limit=limit,
        )
    return _LIST_WALLETS.all(
        connection,
        seller_account=seller,
        after_seller=after_seller,
        after_currency=after_currency,
        limit=limit,
    )


class EntryFilter(NamedTuple):
    """Which entries of a wallet to list; an empty source id matches everything."""

    seller_account: str
    currency: str
    source_id: str


def list_entries(
    connection: Connection, filters: EntryFilter, before: tuple[int] | None, limit: int
) -> Sequence[EntryRow]:
    """A wallet's entries, newest first, below a number."""
    (before_number,) = before or (_MAX_ENTRY_NUMBER,)
    values = {**filters._asdict(), "before": before_number, "limit": limit}
    if filters.source_id:
        return _LIST_ENTRIES_OF_SOURCE.all(connection, **values)
    return _LIST_ENTRIES.all(connection, **values)


def list_entries_of_sources(
    connection: Connection, source_ids: Sequence[str], limit: int
) -> list[EntryRow]:
    """The newest entries of some sources, in any wallets, newest first."""
    return _LIST_ENTRIES_OF_SOURCES.all(connection, source_ids=list(source_ids), limit=limit)


# The newest holds in each of the seller's few currencies.
_LIST_HOLDS = Query(
    HoldRow,
    f"""
    select {columns(HoldRow, "h")} from wallet w cross join lateral (
        select * from hold h where h.seller_account = w.seller_account
            and h.currency = w.currency
            and (h.create_time,
                h.hold_id) < (coalesce(cast(:before_time as timestamptz), 'infinity'), :before_id)
        order by h.create_time desc, h.hold_id desc limit :limit) h
    where w.seller_account = :seller_account and (:currency = '' or w.currency = :currency)
    order by h.create_time desc, h.hold_id desc limit :limit
    """,
)


def list_holds(
    connection: Connection, filters: WalletKey, before: PageKey | None, limit: int
) -> Sequence[HoldRow]:
    """A seller's holds, newest first, before a given (create_time, hold_id). An empty currency
    matches everything.
    """
    return _LIST_HOLDS.all(
        connection,
        seller_account=filters[0],
        currency=filters[1],
        limit=limit,
        **before_parameters(before),
    )


class DueInstructionRow(NamedTuple):
    """The source id of an instruction that is due, and since when."""

    source_id: str
    time: datetime


_LIST_EXPIRED_HOLDS = Query(
    DueInstructionRow,
    """
    select hold_id as source_id, expire_time as time from hold
    where state = 'OPEN' and expire_time <= (select clock())
        and (expire_time, hold_id) > (coalesce(cast(:after_time as timestamptz), '-infinity'),
        :after)
    order by expire_time, hold_id limit :limit
    """,
)
_LIST_RELEASABLE = Query(
    DueInstructionRow,
    """
    select source_id, release_time as time from pending_credit
    where release_time <= (select clock())
        and (release_time, source_id) > (coalesce(cast(:after_time as timestamptz), '-infinity'),
        :after)
    order by release_time, source_id limit :limit
    """,
)


def list_expired_holds(
    connection: Connection, after: DueCursor | None, limit: int
) -> Sequence[DueInstructionRow]:
    """Open holds that have expired, oldest first, after a given (time, hold_id)."""
    return _LIST_EXPIRED_HOLDS.all(connection, limit=limit, **_cursor_parameters(after))


def list_releasable(
    connection: Connection, after: DueCursor | None, limit: int
) -> Sequence[DueInstructionRow]:
    """The source ids of pending credits whose release is due, oldest first, after a given (time,
    source_id).
    """
    return _LIST_RELEASABLE.all(connection, limit=limit, **_cursor_parameters(after))


def _cursor_parameters(cursor: DueCursor | None) -> dict[str, Any]:
    return {"after_time": cursor[0] if cursor else None, "after": cursor[1] if cursor else ""}
