"""The numbered stream of events."""

from tallystick_storage.migrations import create
from tallystick_storage.migrations.rules import statement_rule

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
    publish_time timestamptz not null,
    body bytea not null,  -- the event as a tallystick.event.v1.Event without its cursor
    unique (aggregate_id, aggregate_version)
);

-- The last event that was deleted at the end of its retention, and when it was published.
create table horizon (
    one boolean primary key check (one),
    cursor bigint not null check (cursor >= 0),
    publish_time timestamptz check ((publish_time is null) = (cursor = 0))
);
insert into horizon values (true, 0, null);
"""

RULES = (
    """
create trigger append_only before update or truncate on event
    for each statement execute function reject_change();
create trigger never_deleted before delete or truncate on horizon
    for each statement execute function reject_change();
create function horizon_rises() returns trigger language plpgsql set search_path
    from current as $$
begin
    if new.cursor <= old.cursor or new.cursor > (select h.cursor from head h) then
        raise exception 'the horizon only rises, up to the last event' using errcode = 'P0001';
    end if;
    return new;
end $$;
create trigger horizon_rises before update on horizon for each row
    execute function horizon_rises();
"""
    + statement_rule(
        "deleted_below_horizon",
        "event",
        (
            "select from changed e where e.cursor > (select h.cursor from horizon h)",
            "an event above the horizon is deleted",
        ),
        on=("delete",),
    )
    + """
-- Deletes up to max_count of the oldest events that were published before the retention, and
-- returns how many. The role itself has no DELETE privilege.
create function prune_events(retention interval, max_count int) returns int language plpgsql
security definer set search_path = event, pg_temp as $$
declare
    pruned bigint;
    last_cursor bigint;
    last_time timestamptz;
begin
    select h.cursor into pruned from horizon h for update;
    select max(e.cursor), max(e.publish_time) into last_cursor, last_time from (
        select x.*, bool_and(x.publish_time < (select clock()) - retention)
            over (order by x.cursor) as is_expired
        from (select cursor, publish_time from event where cursor > pruned
            order by cursor limit max_count) x) e
    where e.is_expired;
    if last_cursor is null then
        return 0;
    end if;
    update horizon h set cursor = last_cursor, publish_time = greatest(h.publish_time, last_time);
    delete from event where cursor > pruned and cursor <= last_cursor;
    return last_cursor - pruned;
end $$;
revoke execute on function prune_events from public;
"""
)

GRANTS = """
grant select on horizon to {service};
grant execute on function prune_events to {service};
grant select, insert on event to {service};
grant select, update (cursor) on head to {service};
"""

UNSEALED = frozenset({"head"})  # recomputed from the events


def upgrade() -> None:
    create("event", TABLES, RULES, GRANTS, unsealed=UNSEALED)
