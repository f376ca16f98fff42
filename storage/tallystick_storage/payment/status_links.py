"""The links to the status pages of buyers. A payment has at most one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Query, text


@dataclass(slots=True)
class NewStatusLink:
    """A link to store; `token_hash` in hex. It is valid for `lifetime_seconds`."""

    checkout_id: str
    token_hash: str
    status_url: str
    lifetime_seconds: float


class StatusLinkRow(NamedTuple):
    """A link that is valid."""

    checkout_id: str
    status_url: str
    expire_time: datetime


IS_VALID = "l.revoke_time is null and l.expire_time > (select clock())"
"""The condition that a link `l` can be opened."""

# A valid link stays as it is.
_INSERT = text(f"""
    insert into status_link as l (checkout_id, token_hash, status_url, create_time, expire_time)
    select checkout_id, decode(token_hash, 'hex'), status_url, t.now,
        t.now + make_interval(secs => lifetime_seconds)
    from json_to_recordset(cast(:links as json)) as r (checkout_id text collate "C",
        token_hash text, status_url text, lifetime_seconds float), (select clock() as now) t
    order by checkout_id
    on conflict (checkout_id) do update set token_hash = excluded.token_hash,
        status_url = excluded.status_url, create_time = excluded.create_time,
        expire_time = excluded.expire_time, revoke_time = null
    where not ({IS_VALID})
""")
_FIND = Query(
    StatusLinkRow, f"select {{columns}} from status_link l where checkout_id = :id and {IS_VALID}"
)
_REVOKE = text(f"""
    update status_link l set revoke_time = clock() where checkout_id = :id and {IS_VALID}
""")
_FIND_CHECKOUT = text(f"""
    select checkout_id from status_link l where token_hash = decode(:token_hash, 'hex')
        and {IS_VALID}
""")


def insert(connection: Connection, links: Sequence[NewStatusLink]) -> None:
    """Stores the links of payments that have no valid one."""
    connection.execute(_INSERT, {"links": encode_rows(links)})


def find(connection: Connection, checkout_id: str) -> StatusLinkRow | None:
    """The valid link of a payment."""
    return _FIND.one_or_none(connection, id=checkout_id)


def revoke(connection: Connection, checkout_id: str) -> bool:
    """Revokes the link of a payment. Returns whether it had a valid one."""
    return bool(connection.execute(_REVOKE, {"id": checkout_id}).rowcount)


def find_checkout(connection: Connection, token_hash: str) -> str | None:
    """The payment of a valid link, by the hash of its token in hex."""
    checkout_id: str | None = connection.execute(
        _FIND_CHECKOUT, {"token_hash": token_hash}
    ).scalar_one_or_none()
    return checkout_id
