"""Reads of wallets, their entries and holds, and of what is due."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tallystick_storage.pagination import before_parameters
from tallystick_storage.sql import Connection, Row, text
from tallystick_storage.wallet.wallets import HOLD_COLUMNS, WalletKey, encode_keys

DueCursor = tuple[datetime, str]
"""The position in the list of what is due: the time since which it is due, and its source id."""

_WALLET_COLUMNS = (
    "seller_account, currency, balance, pending, available, held, owed, frozen, release_delay, "
    "policy_version, version, update_time"
)
_FIND_WALLETS = text(f"""
    select {_WALLET_COLUMNS} from wallet join json_to_recordset(cast(:wallets as json))
        as r (seller_account text collate "C", currency text collate "C")
        using (seller_account, currency)
""")
_LIST_WALLETS = text(f"""
    select {_WALLET_COLUMNS} from wallet
    where (:seller_account = '' or seller_account = :seller_account)
        and (seller_account, currency) > (:after_seller, :after_currency)
    order by seller_account, currency limit :limit
""")
_LIST_WALLETS_IN_CURRENCY = text(f"""
    select {_WALLET_COLUMNS} from wallet
    where (:seller_account = '' or seller_account = :seller_account) and currency = :currency
        and seller_account > :after_seller
    order by seller_account limit :limit
""")
_LIST_ENTRIES = text("""
    select * from wallet_entry where seller_account = :seller_account and currency = :currency
        and number < :before
    order by number desc limit :limit
""")


def find_wallets(connection: Connection, keys: Sequence[WalletKey]) -> dict[WalletKey, Row[Any]]:
    """The current state of the wallets that exist."""
    return {
        (row.seller_account, row.currency): row
        for row in connection.execute(_FIND_WALLETS, {"wallets": encode_keys(keys)})
    }


def list_wallets(
    connection: Connection, seller: str, currency: str, after: WalletKey, limit: int
) -> Sequence[Row[Any]]:
    """Wallets by seller and currency, after a given one."""
    parameters = {"seller_account": seller, "after_seller": after[0], "limit": limit}
    if currency:
        return connection.execute(
            _LIST_WALLETS_IN_CURRENCY, {**parameters, "currency": currency}
        ).all()
    return connection.execute(_LIST_WALLETS, {**parameters, "after_currency": after[1]}).all()


def list_entries(
    connection: Connection, key: WalletKey, before: int, limit: int
) -> Sequence[Row[Any]]:
    """A wallet's entries, newest first, below a number."""
    parameters = {"seller_account": key[0], "currency": key[1], "before": before, "limit": limit}
    return connection.execute(_LIST_ENTRIES, parameters).all()


# The newest holds in each of the seller's few currencies.
_LIST_HOLDS = text(f"""
    select h.* from wallet w cross join lateral (
        select {HOLD_COLUMNS} from hold h where h.seller_account = w.seller_account
            and h.currency = w.currency
            and (h.create_time,
                h.hold_id) < (coalesce(cast(:before_time as timestamptz), 'infinity'), :before_id)
        order by h.create_time desc, h.hold_id desc limit :limit) h
    where w.seller_account = :seller_account and (:currency = '' or w.currency = :currency)
    order by h.create_time desc, h.hold_id desc limit :limit
""")


def list_holds(
    connection: Connection, seller: str, currency: str, before: tuple[Any, str] | None, limit: int
) -> Sequence[Row[Any]]:
    """A seller's holds, newest first, before a given (create_time, hold_id)."""
    parameters = {
        "seller_account": seller,
        "currency": currency,
        **before_parameters(before),
        "limit": limit,
    }
    return connection.execute(_LIST_HOLDS, parameters).all()


_LIST_EXPIRED_HOLDS = text("""
    select hold_id as source_id, expire_time as time from hold
    where state = 'OPEN' and expire_time <= (select clock())
        and (expire_time, hold_id) > (coalesce(cast(:after_time as timestamptz), '-infinity'),
        :after)
    order by expire_time, hold_id limit :limit
""")
_LIST_RELEASABLE = text("""
    select source_id, release_time as time from pending_credit
    where release_time <= (select clock())
        and (release_time, source_id) > (coalesce(cast(:after_time as timestamptz), '-infinity'),
        :after)
    order by release_time, source_id limit :limit
""")


def list_expired_holds(
    connection: Connection, after: DueCursor | None, limit: int
) -> Sequence[Row[Any]]:
    """Open holds that have expired, oldest first, after a given (time, hold_id)."""
    return connection.execute(
        _LIST_EXPIRED_HOLDS, {**_cursor_parameters(after), "limit": limit}
    ).all()


def list_releasable(
    connection: Connection, after: DueCursor | None, limit: int
) -> Sequence[Row[Any]]:
    """The source ids of pending credits whose release is due, oldest first, after a given (time,
    source_id).
    """
    return connection.execute(_LIST_RELEASABLE, {**_cursor_parameters(after), "limit": limit}).all()


def _cursor_parameters(cursor: DueCursor | None) -> dict[str, Any]:
    return {"after_time": cursor[0] if cursor else None, "after": cursor[1] if cursor else ""}
