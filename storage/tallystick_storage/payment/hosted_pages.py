"""The hosted pages of payments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, text


@dataclass(slots=True)
class HostedPageRow:
    """A hosted page to store with its payment. `requested_expire_time` None: as configured."""

    checkout_id: str
    success_url: str
    cancel_url: str
    requested_expire_time: datetime | None
    locale: str
    return_url: str


_INSERT = text("""
    insert into hosted_page (checkout_id, success_url, cancel_url, requested_expire_time, locale,
        return_url)
    select checkout_id, success_url, cancel_url, requested_expire_time, locale, return_url
    from json_to_recordset(cast(:pages as json)) as r (checkout_id text collate "C",
        success_url text, cancel_url text, requested_expire_time timestamptz, locale text,
        return_url text)
    order by checkout_id
""")


def insert(connection: Connection, pages: Sequence[HostedPageRow]) -> None:
    """Stores the pages of payments that this transaction has stored."""
    connection.execute(_INSERT, {"pages": encode_rows(pages)})
