"""The tables and functions that several schemas have: SQL for the migrations."""

from collections.abc import Sequence

from tallystick_core.operations.kind import COLLECTIONS, KindName
from tallystick_storage.migrations.rules import require_event

COMMON_OBJECTS = """
-- The only clock. The simulation replaces it.
create function clock() returns timestamptz language sql volatile as 'select clock_timestamp()';

-- For append-only tables.
create function reject_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name using errcode = 'P0001';
end $$;

-- One row per writing transaction: it shows whether a transaction whose COMMIT got no answer has
-- committed.
create table commit_marker (id uuid primary key, create_time timestamptz not null) with
    (autovacuum_vacuum_scale_factor = 0.01);
create index commit_marker_by_time on commit_marker (create_time);
grant select, insert, delete on commit_marker to {service};
"""

OUTBOX = """
-- The changes of a transaction, as versions of aggregates, with their events. Deleted once
-- EventService has them.
create table outbox (
    sequence bigint generated always as identity primary key,
    transaction_id xid8 not null default pg_current_xact_id(),
    aggregate_ids text[] not null,
    versions bigint[] not null
        check (cardinality(versions) > 0 and cardinality(versions) = cardinality(aggregate_ids)),
    -- a serialized BatchPublishRequest with an event per change; written once the changes are known
    request bytea check (request <> ''),
    create_time timestamptz not null default clock()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
create index outbox_by_transaction on outbox (transaction_id);
alter table outbox alter aggregate_ids set storage external, alter versions
    set storage external, alter request set storage external;
grant select, insert, delete, update (request) on outbox to {service};

-- The events that this transaction has recorded, for the triggers that check them.
create view recorded_event as
    select unnest(aggregate_ids) collate "C" as aggregate_id, unnest(versions) as version
        from outbox where transaction_id = pg_current_xact_id();

-- E1: a transaction that records a change must store its event before it ends, and must not remove
-- it.
create function changes_are_recorded() returns trigger language plpgsql set search_path
    from current as $$
begin
    if not exists (select from outbox where sequence = new.sequence and request is not null) then
        raise exception 'a transaction does not tell what it changed' using errcode = 'P0001';
    end if;
    return null;
end $$;
create constraint trigger changes_are_recorded after insert on outbox deferrable initially deferred
    for each row execute function changes_are_recorded();
create trigger recorded_once before update on outbox for each row
    when (old.request is not null) execute function reject_change();

-- Aggregates with an event that EventService rejects. That event and the later ones wait here, so
-- that the events of other aggregates are published.
create table rejected_aggregate (
    aggregate_id text collate "C" primary key,
    -- 0: events were added just after the earlier ones had been published
    rejection_count int not null check (rejection_count >= 0),
    next_try_time timestamptz not null,
    detail text not null
) with (fillfactor = 70);
create index rejected_aggregate_due on rejected_aggregate (next_try_time, aggregate_id);
create table rejected_event (
    aggregate_id text collate "C" not null references rejected_aggregate,
    version bigint not null,
    event bytea not null,  -- a serialized Event
    primary key (aggregate_id, version)
);
grant select, insert, update, delete on rejected_aggregate, rejected_event to {service};
"""
"""The outbox of a schema that publishes events, and the events that EventService rejects."""


def conflicting_reports(key: str, references: str = "") -> str:
    """The table of provider reports that conflict with what is stored, each stored once until it is
    acknowledged. `key` is its key column.
    """
    return f"""
create table conflicting_report (
    {key} text collate "C" not null {references},
    number int not null check (number > 0),
    report text not null check (report <> ''),
    create_time timestamptz not null,
    acknowledged_by text not null default '',  -- the operator who acknowledged it; "": nobody yet
    acknowledge_reason text not null default ''
        check ((acknowledge_reason <> '') = (acknowledged_by <> '')),
    acknowledge_time timestamptz check ((acknowledge_time is not null) = (acknowledged_by <> '')),
    primary key ({key}, number)
);
create index conflicting_report_open on conflicting_report ({key}, number)
    where acknowledged_by = '';
create unique index conflicting_report_once on conflicting_report ({key}, report)
    where acknowledged_by = '';
create trigger acknowledged_once before update on conflicting_report for each row
    when (old.acknowledged_by <> '' or new.acknowledged_by = '')
execute function reject_change();
create trigger never_deleted before delete or truncate on conflicting_report
    for each statement execute function reject_change();
grant select, insert, update (acknowledged_by, acknowledge_reason, acknowledge_time)
    on conflicting_report to {{service}};
"""


_OPERATIONS = """
-- A numbered request to a provider under one idempotency key, committed before it is sent. It may
-- be sent more than once.
create table attempt (
    kind text collate "C" not null check (kind in ({kinds})),
    operation_id text collate "C" not null,
    attempt_number int not null check (attempt_number > 0),
    provider text not null,
    provider_key text not null,  -- made of the key of this row, so just as unique
    amount bigint not null check (amount > 0),
    currency text not null,
    outcome text not null check (outcome in (
        '', 'SUCCEEDED', 'DECLINED', 'RETURNED', 'PENDING', 'SUBMITTED', 'IN_TRANSIT', 'NOT_SENT',
            'UNKNOWN')),
    provider_reference text not null,
    moved_amount bigint,  -- the amount that the provider reports
    moved_currency text,
    failure_reason text not null,  -- why the provider declined it
    decline_code text not null,
    -- what the provider takes for a success; null: it has not reported it
    provider_fee bigint
        check (provider_fee is null or provider_fee >= 0 and outcome = 'SUCCEEDED'),
    provider_fee_currency text
        check ((provider_fee_currency is null) = (provider_fee is null)),
    -- of a charge: the rule that chose the provider, and why; "": none matched, or there is none
    routing_rule text not null default '' check (routing_rule = '' or routing_reason <> ''),
    routing_reason text not null default '',
    -- of a charge: the provider of the next attempt, if certainly nothing was sent by this one
    fallback_provider text not null default '' check (fallback_provider <> provider),
    start_time timestamptz not null,
    -- NOT_SENT ends an attempt only if another one replaces it
    end_time timestamptz
        check (outcome = 'NOT_SENT'
            or (end_time is not null) = (outcome in ('SUCCEEDED', 'DECLINED', 'RETURNED'))),
    -- for the index: a success leaves it unchanged
    is_live boolean not null generated always as (
        outcome <> 'DECLINED' and not (outcome = 'NOT_SENT' and end_time is not null)) stored,
    -- for the index, likewise: the reference of moved money is the key of its own table
    indexed_reference text collate "C" generated always as (
        case when outcome not in ('SUCCEEDED', 'RETURNED') and provider_reference <> ''
            then provider_reference end) stored,
    primary key (kind, operation_id, attempt_number)
) with (fillfactor = 40);  -- free space for HOT updates: the result changes no index
-- At most one attempt is open or has succeeded: the next one starts only after the earlier one has
-- certainly moved no money.
create unique index attempt_live on attempt (kind, operation_id) where is_live;
create index attempt_by_reference on attempt (provider, indexed_reference)
    where indexed_reference is not null;
create trigger never_deleted before delete or truncate on attempt
    for each statement execute function reject_change();
grant select, insert on attempt to {service};
grant update (outcome, provider_reference, moved_amount, moved_currency, failure_reason,
    decline_code, provider_fee, provider_fee_currency, end_time) on attempt to {service};

-- The operation queue. A row is deleted when its operation and everything that follows from it are
-- completed.
create table operation (
    kind text collate "C" not null check (kind in ({kinds})),
    operation_id text collate "C" not null,
    provider text not null,
    -- null: a dead letter, nothing is scheduled; infinity: waits for approval
    next_try_time timestamptz,
    lease_until timestamptz not null,
    lease_token bigint not null,
    -- false: the last holder gave its lease back; otherwise it may have sent the operation and
    -- crashed before recording that
    is_leased boolean not null,
    maybe_sent boolean not null,  -- the provider may have received it
    lookup_only boolean not null,  -- only lookups, it is not sent again
    -- retries for each retry reason since the last progress
    retry_counts jsonb not null default '{}',
    sent_time timestamptz,  -- when it may last have been sent; null: never
    -- lookups since then that found nothing
    not_found_count int not null default 0 check (not_found_count >= 0),
    -- its request has changed since it was claimed: its holder releases it due at once
    has_changed boolean not null default false,
    -- of a dead letter: when it expires and is to be ended; null: never
    expire_time timestamptz,
    retry_reason text not null,  -- the last one
    detail text not null,
    -- its phase at the last reschedule, in its service's terms; "": new or in progress
    phase text not null default '',
    phase_start_time timestamptz not null default clock(),  -- when that phase began
    -- The earliest time of a claim; null: not before an operator has decided. The index for claims
    -- holds only such rows.
    ready_time timestamptz generated always as (case when next_try_time < 'infinity'
        then greatest(next_try_time, lease_until) end) stored,
    primary key (kind, operation_id)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
create index operation_ready on operation (provider, ready_time, kind, operation_id)
    where ready_time is not null;
create index operation_by_phase on operation (kind, phase, phase_start_time)
    where next_try_time is not null;
create index operation_rejected on operation (kind, operation_id)
    where retry_reason = 'CALLER_REJECTED'
    and next_try_time is not null;
create index operation_by_expire_time on operation (expire_time, kind, operation_id)
    where expire_time is not null
    and next_try_time is null;
create index operation_failing on operation (retry_reason, provider)
    where retry_reason in ('UNAUTHORIZED', 'CIRCUIT_OPEN')
    and next_try_time is not null;
grant select, insert, update, delete on operation to {service};
"""


def operations(*kinds: KindName) -> str:
    """The operations of a schema that calls providers, of these kinds: their attempts and their
    schedule. The ids of different kinds may be equal.
    """
    return _OPERATIONS.replace("{kinds}", _quoted(kinds))


def _quoted(kinds: Sequence[KindName]) -> str:
    return ", ".join(f"'{kind}'" for kind in kinds)


MAX_FAILED_TRIES = 20
"""The number of failed tries that are kept of an operation."""
REQUEST_IDS = """
-- the provider's id of the request that it has answered; "": it names none
alter table attempt add provider_request_id text not null default '';
alter table attempt add constraint attempt_provider_request_id
    check (length(provider_request_id) <= 255) not valid;  -- all rows have ""
grant update (provider_request_id) on attempt to {service};
"""
FAILED_TRIES = f"""
-- Why the last tries of an operation did not complete it. Written when one fails; a row replaces
-- the one that is {MAX_FAILED_TRIES} tries older.
create table failed_try (
    kind text collate "C" not null,
    operation_id text collate "C" not null,
    number int not null check (number > 0),
    slot int not null generated always as (number % {MAX_FAILED_TRIES}) stored,
    attempt_number int not null check (attempt_number >= 0),
    provider text not null,
    action text not null check (action <> ''),
    retry_reason text not null check (retry_reason <> ''),
    detail text not null,
    provider_request_id text not null check (length(provider_request_id) <= 255),
    -- the same failure at several tries in a row, without an answer of the provider
    repeat_count int not null check (repeat_count > 0),
    create_time timestamptz not null,
    last_time timestamptz not null check (last_time >= create_time),
    next_try_time timestamptz,  -- null: no further try was scheduled
    primary key (kind, operation_id, slot)
) with (fillfactor = 80);
create trigger never_deleted before delete or truncate on failed_try
    for each statement execute function reject_change();
grant select, insert, update on failed_try to {{service}};
"""

WEBHOOK_EVENTS = """
-- What providers report by webhook, without personal data: what an event is about is looked up at
-- the provider before anything changes.
create table webhook_event (
    webhook_event_id text collate "C" primary key,  -- made of the provider and its id of the event
    provider text not null,
    event_id text not null check (event_id <> ''),
    event_type text not null check (event_type <> ''),
    subject text not null check (subject in ('charge', 'payout', 'other')),
    -- the provider's id of the charge or payout, and the operation's id as it echoes it; '': none
    reference text not null,
    client_reference text not null,
    account text not null,  -- the connected account; '': the platform's own
    traceparent text not null,
    state text not null check (state in ('RECEIVED', 'APPLIED', 'IGNORED', 'CLOSED')),
    -- what it was applied to
    resource_name text not null check ((resource_name <> '') = (state = 'APPLIED')),
    provider_time timestamptz not null,
    receive_time timestamptz not null,
    end_time timestamptz check ((end_time is null) = (state = 'RECEIVED'))
) with (fillfactor = 70);
create index webhook_event_by_time on webhook_event (receive_time desc, webhook_event_id desc);
create index webhook_event_by_reference on webhook_event (reference, receive_time desc)
    where reference <> '';
create trigger never_deleted before delete or truncate on webhook_event
    for each statement execute function reject_change();
grant select, insert, update (state, resource_name, end_time) on webhook_event to {service};
"""
"""The inbox of webhook events of a schema that calls providers."""

_DEAD_LETTERS = """
-- Operations that are not retried until an operator decides. Rows are kept permanently, one for
-- each time.
create table dead_letter (
    dead_letter_id text collate "C" primary key,
    kind text collate "C" not null check (kind in ({kinds})),
    operation_id text collate "C" not null,
    resource_name text collate "C" not null generated always as (  -- as the API names it
        case kind {collections} end || '/' || operation_id) stored,
    number int not null check (number > 0),
    cause text not null check (cause <> ''),
    detail text not null,
    retry_count int not null check (retry_count >= 0),
    state text not null check (state in ('OPEN', 'RETRIED', 'CLOSED', 'RESOLVED')),
    operator text not null check ((operator <> '') = (state in ('RETRIED', 'CLOSED'))),
    reason text not null check ((reason <> '') = (operator <> '')),
    evidence text not null check ((evidence <> '') = (state = 'CLOSED')),
    create_time timestamptz not null,
    end_time timestamptz check ((end_time is null) = (state = 'OPEN')),
    provider text not null,
    unique (kind, operation_id, number),
    check (dead_letter_id = translate(resource_name, '/', '-') || '-' || number)
);
create unique index dead_letter_open on dead_letter (kind, operation_id) where state = 'OPEN';
create index dead_letter_by_time on dead_letter (create_time desc, dead_letter_id desc);
create index dead_letter_by_cause
    on dead_letter (cause, provider, create_time desc, dead_letter_id desc);
create index dead_letter_by_provider
    on dead_letter (provider, create_time desc, dead_letter_id desc);
create index dead_letter_by_state on dead_letter (state, create_time desc, dead_letter_id desc);
create trigger ends_once before update on dead_letter for each row
    when (old.state <> 'OPEN' or new.state = 'OPEN') execute function reject_change();
create trigger never_deleted before delete or truncate on dead_letter
    for each statement execute function reject_change();

grant select, insert, update (state, operator, reason, evidence, end_time)
    on dead_letter to {service};
""" + require_event(
    "dead_letter",
    "a dead letter",
    "'deadLetters/' || dead_letter_id",
    "case when state = 'OPEN' then 1 else 2 end",
)


def dead_letters(*kinds: KindName) -> str:
    """The dead letters of a schema that has operations of these kinds; created after its outbox."""
    collections = " ".join(f"when '{kind}' then '{COLLECTIONS[kind]}'" for kind in kinds)
    return _DEAD_LETTERS.replace("{kinds}", _quoted(kinds)).replace("{collections}", collections)


ALERTS = """
-- Conditions that an operator must know of. A condition that is found again keeps its alert until
-- that has ended.
create table alert (
    alert_id text collate "C" primary key,
    kind text not null,
    resource_name text collate "C" not null,  -- "{collection}/{id}"
    number int not null check (number > 0),
    detail text not null,
    create_time timestamptz not null,
    end_time timestamptz check (end_time >= create_time),
    unique (kind, resource_name, number),
    check (alert_id = '{schema}-' || kind || '-' || translate(resource_name, '/',
        '-') || '-' || number)
);
create unique index alert_open on alert (kind, resource_name) where end_time is null;
create index alert_by_time on alert (create_time desc, alert_id desc);
create index alert_open_by_time on alert (create_time desc, alert_id desc) where end_time is null;
create trigger ends_once before update on alert for each row
    when (old.end_time is not null) execute function reject_change();
create trigger never_deleted before delete or truncate on alert
    for each statement execute function reject_change();

grant select, insert, update (end_time) on alert to {service};

-- Leader leases: work that one process at a time does for all.
create table leader_lease (name text primary key, holder_id uuid not null,
    lease_until timestamptz not null);
grant select, insert, update on leader_lease to {service};
""" + require_event(
    "alert", "an alert", "'alerts/' || alert_id", "case when end_time is null then 1 else 2 end"
)
"""The alerts of a schema, and the leader lease for raising them; created after its outbox."""

SHARED_CHANGE_SELECTS = {
    "deadLetters": (
        "select from dead_letter d where d.dead_letter_id = {id} and x.version = case when "
        "d.state = 'OPEN' then 1 else 2 end"
    ),
    "alerts": (
        "select from alert a where a.alert_id = {id} and x.version = case when a.end_time is null "
        "then 1 else 2 end"
    ),
}
"""The selects that find dead letters and alerts for `event_has_change`."""
