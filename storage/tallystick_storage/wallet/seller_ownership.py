"""The owners of sellers, in the wallet's schema. Lock order: assignments, then sellers by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Row, text


@dataclass(slots=True)
class NewSeller:
    """A seller that an owner claims."""

    seller_account: str
    owner: str


@dataclass(slots=True)
class NewAssignmentRow:
    """A seller's move to another owner, requested by an operator. `previous_owner` "": the seller
    has no owner.
    """

    seller_assignment_id: str
    seller_account: str
    owner: str
    previous_owner: str
    requested_by: str
    reason: str


_ASSIGNMENT_COLUMNS = """seller_assignment_id, seller_account, owner, previous_owner, state,
    requested_by, reason, decided_by, decision_reason,
    case when state = 'REQUESTED' then 1 else 2 end as version, create_time, decide_time"""

_FIND_OWNERS = text(
    "select seller_account, owner, version, update_time from seller where seller_account = any "
    "(cast(:sellers as text[])) order by seller_account"
)
# A seller that another owner claims at the same time is missing here once that claim is committed.
# The next statement reads its owner.
_CLAIM = text(f"""
    with new as (
        insert into seller (seller_account, owner, version, update_time)
        select r.seller_account, r.owner, 1, clock() from json_to_recordset(cast(:sellers as json))
            as r (seller_account text collate "C", owner text)
        order by r.seller_account
        on conflict do nothing returning *),
    {insert_into_outbox("new", "'sellers/' || seller_account", "1")}
    select new.*, sequence as outbox_sequence from new, outbox_sequence
""")
_LOCK = text(
    "select seller_account, owner, version, update_time from seller where seller_account = "
    ":seller_account for update"
)
_CHANGE_OWNER = text(f"""
    with changed as (
        update seller set owner = :owner, version = :version,
            update_time = greatest(update_time, clock()) where seller_account = :seller_account
            returning *),
    {insert_into_outbox("changed", "'sellers/' || seller_account")}
    select changed.*, sequence as outbox_sequence from changed, outbox_sequence
""")
_INSERT_ASSIGNMENT = text(f"""
    with new as (
        insert into seller_assignment (seller_assignment_id, seller_account, owner, previous_owner,
            state, requested_by, reason, decided_by, decision_reason,
            create_time)
        values (:seller_assignment_id, :seller_account, :owner, :previous_owner, 'REQUESTED',
            :requested_by, :reason, '', '', clock())
        on conflict do nothing returning *),
    {insert_into_outbox("new", "'sellerAssignments/' || seller_assignment_id", "1")}
    select {_ASSIGNMENT_COLUMNS}, sequence as outbox_sequence from new, outbox_sequence
""")
_FIND_ASSIGNMENT = text(
    f"select {_ASSIGNMENT_COLUMNS} from seller_assignment where seller_assignment_id = :id"
)
_LOCK_ASSIGNMENT = text(
    f"select {_ASSIGNMENT_COLUMNS} from seller_assignment where seller_assignment_id = :id for "
    "update"
)
_RECORD_DECISION = text(f"""
    with decided as (
        update seller_assignment set state = :state, decided_by = :decided_by,
            decision_reason = :reason, seller_version = :seller_version,
            decide_time = greatest(create_time, clock()) where seller_assignment_id = :id
                returning *),
    {insert_into_outbox("decided", "'sellerAssignments/' || seller_assignment_id", "2")}
    select {_ASSIGNMENT_COLUMNS}, sequence as outbox_sequence from decided, outbox_sequence
""")
_LIST_ASSIGNMENTS = text(f"""
    select {_ASSIGNMENT_COLUMNS} from seller_assignment where seller_account = :seller_account
    order by create_time desc, seller_assignment_id desc limit :limit
""")


def find_owners(connection: Connection, sellers: Sequence[str]) -> Sequence[Row[Any]]:
    """The given sellers that have an owner, by id."""
    return connection.execute(_FIND_OWNERS, {"sellers": list(sellers)}).all()


def claim(connection: Connection, sellers: Sequence[NewSeller]) -> Sequence[Row[Any]]:
    """Assigns sellers to owners. Returns those that had no owner, each with the outbox row of its
    event. Each seller may occur only once.
    """
    return connection.execute(_CLAIM, {"sellers": encode_rows(sellers)}).all()


def lock(connection: Connection, seller_account: str) -> Row[Any] | None:
    """Locks a seller that is to change its owner; None: it has no owner."""
    return connection.execute(_LOCK, {"seller_account": seller_account}).one_or_none()


def change_owner(connection: Connection, seller_account: str, owner: str, version: int) -> Row[Any]:
    """Changes the owner of a locked seller. Returns the seller with the outbox row of its event."""
    return connection.execute(
        _CHANGE_OWNER, {"seller_account": seller_account, "owner": owner, "version": version}
    ).one()


def insert_assignment(connection: Connection, new: NewAssignmentRow) -> Row[Any] | None:
    """Stores an assignment. Returns it with the outbox row of its event, or None if its id exists
    or the seller has an open one.
    """
    return connection.execute(
        _INSERT_ASSIGNMENT, {field: getattr(new, field) for field in new.__slots__}
    ).one_or_none()


def find_assignment(
    connection: Connection, seller_assignment_id: str, *, for_update: bool = False
) -> Row[Any] | None:
    """An assignment, locked on request to be decided."""
    return connection.execute(
        _LOCK_ASSIGNMENT if for_update else _FIND_ASSIGNMENT, {"id": seller_assignment_id}
    ).one_or_none()


def record_decision(
    connection: Connection,
    seller_assignment_id: str,
    state: str,
    decided_by: str,
    reason: str,
    seller_version: int | None,
) -> Row[Any]:
    """Decides a locked assignment. Returns it with the outbox row of its event."""
    values = {
        "id": seller_assignment_id,
        "state": state,
        "decided_by": decided_by,
        "reason": reason,
        "seller_version": seller_version,
    }
    return connection.execute(_RECORD_DECISION, values).one()


def list_assignments(connection: Connection, seller_account: str, limit: int) -> Sequence[Row[Any]]:
    """The last assignments of a seller, newest first."""
    return connection.execute(
        _LIST_ASSIGNMENTS, {"seller_account": seller_account, "limit": limit}
    ).all()
