"""The numbered stream of events."""

from tallystick_storage.migrations import create

revision = "event_0001"
down_revision = None
branch_labels = ("event",)
depends_on = None

TABLES = """
create table head (one boolean primary key check (one), cursor bigint not null);
insert into head values (true, 0);

create table event (
    cursor bigint primary key,
    aggregate_id text collate "C" not null,
    aggregate_version bigint not null,
    type text not null,
    -- the owner whose callers may stream it; "": only the platform
    owner text collate "C" not null,
    body bytea not null,  -- the event as a tallystick.event.v1.Event without its cursor
    unique (aggregate_id, aggregate_version)
);
"""

RULES = """
create trigger append_only before update or delete or truncate on event
    for each statement execute function reject_change();
"""

GRANTS = """
grant select, insert on event to {service};
grant select, update (cursor) on head to {service};
"""

UNSEALED = frozenset({"head"})  # recomputed from the events


def upgrade() -> None:
    create("event", TABLES, RULES, GRANTS, unsealed=UNSEALED)
