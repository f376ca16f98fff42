"""The owners of sellers, in the wallet's schema. Lock order: assignments, then sellers by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Query, columns, text


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


@dataclass(frozen=True, slots=True)
class SellerRow:
    """A seller and its owner."""

    seller_account: str
    owner: str
    version: int
    update_time: datetime


@dataclass(frozen=True, slots=True)
class ChangedSellerRow(SellerRow):
    """A seller with a new owner, and the outbox row of its event."""

    outbox_sequence: int


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """A seller's move to another owner. Its version is 2 once it is decided."""

    seller_assignment_id: str
    seller_account: str
    owner: str
    previous_owner: str
    state: str
    requested_by: str
    reason: str
    decided_by: str
    decision_reason: str
    create_time: datetime
    decide_time: datetime | None

    @property
    def version(self) -> int:
        return 1 if self.decide_time is None else 2


@dataclass(frozen=True, slots=True)
class ChangedAssignmentRow(AssignmentRow):
    """An assignment that was requested or decided, and the outbox row of its event."""

    outbox_sequence: int


_FIND_OWNERS = Query(
    SellerRow,
    "select {columns} from seller where seller_account = any (cast(:sellers as text[])) "
    "order by seller_account",
)
# A seller that was claimed at the same time is not inserted.
_CLAIM = text(f"""
    with new as (
        insert into seller (seller_account, owner, version, update_time)
        select {columns(SellerRow, "r")} from json_to_recordset(cast(:sellers as json))
            as r (seller_account text collate "C", owner text, version bigint,
            update_time timestamptz)
        order by r.seller_account
        on conflict do nothing returning *),
    {insert_into_outbox("new", "'sellers/' || seller_account", request="cast(:events as bytea)")}
    select from new
""")
_LOCK = Query(
    SellerRow, "select {columns} from seller where seller_account = :seller_account for update"
)
_CHANGE_OWNER = Query(
    ChangedSellerRow,
    f"""
    with changed as (
        update seller set owner = :owner, version = :version,
            update_time = greatest(update_time, clock()) where seller_account = :seller_account
            returning *),
    {insert_into_outbox("changed", "'sellers/' || seller_account")}
    select {columns(SellerRow, "s")}, sequence as outbox_sequence from changed s, outbox_sequence
    """,
)
_INSERT_ASSIGNMENT = Query(
    ChangedAssignmentRow,
    f"""
    with new as (
        insert into seller_assignment (seller_assignment_id, seller_account, owner, previous_owner,
            state, requested_by, reason, decided_by, decision_reason,
            create_time)
        values (:seller_assignment_id, :seller_account, :owner, :previous_owner, 'REQUESTED',
            :requested_by, :reason, '', '', clock())
        on conflict do nothing returning *),
    {insert_into_outbox("new", "'sellerAssignments/' || seller_assignment_id", "1")}
    select {columns(AssignmentRow, "new")}, sequence as outbox_sequence from new, outbox_sequence
    """,
)
_FIND_ASSIGNMENT = Query(
    AssignmentRow, "select {columns} from seller_assignment where seller_assignment_id = :id"
)
_LOCK_ASSIGNMENT = Query(
    AssignmentRow,
    "select {columns} from seller_assignment where seller_assignment_id = :id for update",
)
_RECORD_DECISION = Query(
    ChangedAssignmentRow,
    f"""
    with decided as (
        update seller_assignment set state = :state, decided_by = :decided_by,
            decision_reason = :reason, seller_version = :seller_version,
            decide_time = greatest(create_time, clock()) where seller_assignment_id = :id
                returning *),
    {insert_into_outbox("decided", "'sellerAssignments/' || seller_assignment_id", "2")}
    select {columns(AssignmentRow, "a")}, sequence as outbox_sequence
        from decided a, outbox_sequence
    """,
)
_LIST_ASSIGNMENTS = Query(
    AssignmentRow,
    """
    select {columns} from seller_assignment where seller_account = :seller_account
    order by create_time desc, seller_assignment_id desc limit :limit
    """,
)


def find_owners(connection: Connection, sellers: Sequence[str]) -> Sequence[SellerRow]:
    """The given sellers that have an owner, by id."""
    return _FIND_OWNERS.all(connection, sellers=list(sellers))


def claim(connection: Connection, sellers: Sequence[SellerRow], events: bytes) -> int:
    """Stores the first versions of sellers that have no owner, and returns their number. If it is
    not that of all, the transaction must be rolled back unless it is 0. `events`: a serialized
    BatchPublishRequest with an event for each.
    """
    parameters = {"sellers": encode_rows(sellers), "events": events}
    return connection.execute(_CLAIM, parameters).rowcount


def lock(connection: Connection, seller_account: str) -> SellerRow | None:
    """Locks a seller that is to change its owner; None: it has no owner."""
    return _LOCK.one_or_none(connection, seller_account=seller_account)


def change_owner(
    connection: Connection, seller_account: str, owner: str, version: int
) -> ChangedSellerRow:
    """Changes the owner of a locked seller."""
    return _CHANGE_OWNER.one(
        connection, seller_account=seller_account, owner=owner, version=version
    )


def insert_assignment(connection: Connection, new: NewAssignmentRow) -> ChangedAssignmentRow | None:
    """Stores an assignment. Returns None if its id exists or the seller has an open one."""
    return _INSERT_ASSIGNMENT.one_or_none(
        connection, **{field: getattr(new, field) for field in new.__slots__}
    )


def find_assignment(
    connection: Connection, seller_assignment_id: str, *, for_update: bool = False
) -> AssignmentRow | None:
    """An assignment, locked on request to be decided."""
    query = _LOCK_ASSIGNMENT if for_update else _FIND_ASSIGNMENT
    return query.one_or_none(connection, id=seller_assignment_id)


def record_decision(
    connection: Connection,
    seller_assignment_id: str,
    state: str,
    decided_by: str,
    reason: str,
    seller_version: int | None,
) -> ChangedAssignmentRow:
    """Decides a locked assignment."""
    return _RECORD_DECISION.one(
        connection,
        id=seller_assignment_id,
        state=state,
        decided_by=decided_by,
        reason=reason,
        seller_version=seller_version,
    )


def list_assignments(
    connection: Connection, seller_account: str, limit: int
) -> Sequence[AssignmentRow]:
    """The last assignments of a seller, newest first."""
    return _LIST_ASSIGNMENTS.all(connection, seller_account=seller_account, limit=limit)
