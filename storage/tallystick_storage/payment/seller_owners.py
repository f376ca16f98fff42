"""The owners of sellers as WalletService last reported them, for use when it does not answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Query, text


class _SellerOwnerRow(NamedTuple):
    seller_account: str
    owner: str


_FIND_OWNERS = Query(
    _SellerOwnerRow,
    "select {columns} from seller_owner where seller_account = any (cast(:sellers as text[]))",
)
_SAVE_OWNERS = text("""
    insert into seller_owner (seller_account, owner, update_time)
    select r.seller_account, r.owner, clock() from json_to_recordset(cast(:sellers as json))
        as r (seller_account text collate "C", owner text) order by r.seller_account
    on conflict (seller_account) do update
        set owner = excluded.owner,
        update_time = greatest(seller_owner.update_time, excluded.update_time)
        where seller_owner.owner <> excluded.owner
""")


def find_owners(connection: Connection, sellers: Sequence[str]) -> dict[str, str]:
    """Owners by seller, for the sellers that are stored here."""
    rows = _FIND_OWNERS.all(connection, sellers=list(sellers))
    return {row.seller_account: row.owner for row in rows}


def save_owners(connection: Connection, owners: Mapping[str, str]) -> None:
    """Stores owners by seller."""
    items = [{"seller_account": seller, "owner": owner} for seller, owner in sorted(owners.items())]
    connection.execute(_SAVE_OWNERS, {"sellers": encode_rows(items)})
