"""One Alembic history for each service's schema. Its first makes what every schema has, `clock()`
and `commit_marker` among it, by `create`; every later one only calls `run`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from alembic import op
from sqlalchemy import text

_RULE_CHECK = """
    if exists ({}) then
        raise exception '{}' using errcode = 'P0001';
    end if;"""


def statement_rule(
    name: str,
    table: str,
    *violations: tuple[str, str],
    on: Sequence[str] = ("insert",),
    with_old_rows: bool = False,
) -> str:
    """A rule that each statement on a table has to keep. `violations`: a select of the rows that
    break it, and what is said then.

    A select sees all rows of the statement as `changed`, and with `with_old_rows`, on an update,
    what they were. It looks what belongs to each up by its key, where "offset 0" keeps the look-up
    one: on tables that grow fast the planner's statistics are old, and as a join it would read them
    whole, or once for each row.

    A session plans it once (custom plans cost a millisecond a trigger and batch), perhaps while the
    tables are all but empty and a scan is cheapest, and keeps the plan until they are analyzed: by
    such a plan a look-up of one key took 189 ms once there were 200,000 rows. So none may scan.
    """
    body = "".join(_RULE_CHECK.format(select.strip(), message) for select, message in violations)
    triggers = "".join(
        f"create trigger {event}_{name} after {event} on {table} referencing "
        f"{'old' if event == 'delete' else 'new'} table as changed"
        f"{' old table as before' if with_old_rows else ''} for each statement execute function "
        f"{name}();\n"
        for event in on
    )
    return f"""
create function {name}() returns trigger language plpgsql security definer
set search_path from current set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
begin{body}
    return null;
end $$;
{triggers}"""


def changes_without_event(subject: str, version: str = "version", *, where: str = "true") -> str:
    """E1: the changes of a statement that no event of its transaction tells of."""
    return (
        f"select {subject}, {version} from changed where {where} except select * from "
        "recorded_event"
    )


def require_event(
    table: str, noun: str, subject: str, version: str = "version", *, where: str = "true"
) -> str:
    """E1: a rule that no row of a table is written without its event. `noun` it is, in its message;
    `where`: the rows whose events are recorded.
    """
    message = f"{noun} changed without its event"
    return statement_rule(
        f"{table}_has_event",
        table,
        (changes_without_event(subject, version, where=where), message),
        on=("insert", "update"),
    )


def require_change(change_selects: Mapping[str, str]) -> str:
    """E1: a rule that no event tells of what has not changed. `change_selects`: by collection, a
    select of version x.version of what {id} names.
    """
    cases = "".join(
        f"""
            when x.aggregate_id like '{collection}/%'
                then exists
                ({select.replace("{id}", f"substr(x.aggregate_id, {len(collection) + 2})")} offset
                0)"""
        for collection, select in change_selects.items()
    )
    unmatched_events = (
        "select from changed, unnest(aggregate_ids, versions) as x (aggregate_id, version) where "
        f"(case{cases} end) is not true"
    )
    return statement_rule(
        "event_has_change", "outbox", (unmatched_events, "an event tells of no change")
    )


_COMMON_OBJECTS = """
-- The only clock. The simulation replaces it.
create function clock() returns timestamptz language sql volatile as 'select clock_timestamp()';

-- For what is only ever added to.
create function reject_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name using errcode = 'P0001';
end $$;

-- One row for each writing transaction, so that a lost COMMIT can be told from one that never was.
create table commit_marker (id uuid primary key, create_time timestamptz not null) with
    (autovacuum_vacuum_scale_factor = 0.01);
create index commit_marker_by_time on commit_marker (create_time);
grant select, insert, delete on commit_marker to {service};
"""

OUTBOX = """
-- What a transaction has changed, as versions of aggregates, and the events that tell of it;
-- deleted once EventService has them.
create table outbox (
    sequence bigint generated always as identity primary key,
    transaction_id xid8 not null default pg_current_xact_id(),
    aggregate_ids text[] not null,
    versions bigint[] not null
        check (cardinality(versions) > 0 and cardinality(versions) = cardinality(aggregate_ids)),
    -- a BatchPublishRequest with an event for each, serialized; written once the changes are
    -- known
    request bytea check (request <> ''),
    create_time timestamptz not null default clock()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
create index outbox_by_transaction on outbox (transaction_id);
alter table outbox alter aggregate_ids set storage external, alter versions
    set storage external, alter request set storage external;
grant select, insert, delete, update (request) on outbox to {service};

-- The events that this transaction has recorded, for the triggers that ask for it.
create view recorded_event as
    select unnest(aggregate_ids) collate "C" as aggregate_id, unnest(versions) as version
        from outbox where transaction_id = pg_current_xact_id();

-- E1: who changes something tells of it before the transaction ends, and takes nothing of it back.
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

-- Aggregates of which EventService refuses an event. That event and the later ones wait here, so
-- that the events of others are published.
create table rejected_aggregate (
    aggregate_id text collate "C" primary key,
    -- 0: events were added just when the earlier ones had been published
    rejection_count int not null check (rejection_count >= 0),
    next_attempt_time timestamptz not null,
    detail text not null
) with (fillfactor = 70);
create index rejected_aggregate_due on rejected_aggregate (next_attempt_time, aggregate_id);
create table rejected_event (
    aggregate_id text collate "C" not null references rejected_aggregate,
    version bigint not null,
    event bytea not null,  -- an Event, serialized
    primary key (aggregate_id, version)
);
grant select, insert, update, delete on rejected_aggregate, rejected_event to {service};
"""
"""The outbox of a schema whose changes other services hear of, and the events that EventService
refuses.
"""


def conflicting_reports(key: str, references: str = "") -> str:
    """The table of what a provider reports of something otherwise than it is stored, each once
    until it is acknowledged. `key`: its column.
    """
    return f"""
create table conflicting_report (
    {key} text collate "C" not null {references},
    number int not null check (number > 0),
    report text not null check (report <> ''),
    create_time timestamptz not null,
    acknowledged_by text not null default '',  -- the operator who has dealt with it; "": nobody has
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


OPERATIONS = """
-- A demand on a provider under one key, numbered and committed before it is sent; sent once or
-- more.
create table attempt (
    operation_id text collate "C" not null,
    attempt_number int not null check (attempt_number > 0),
    provider text not null,
    provider_key text not null,  -- as unique as (operation_id, attempt_number), which it is made of
    amount bigint not null check (amount > 0),
    currency text not null,
    outcome text not null check (outcome in (
        '', 'SUCCEEDED', 'DECLINED', 'RETURNED', 'PENDING', 'SUBMITTED', 'IN_TRANSIT', 'NOT_SENT',
            'UNKNOWN')),
    provider_reference text not null,
    moved_amount bigint,  -- what the provider says it moved
    moved_currency text,
    failure_reason text not null,  -- why it was declined
    decline_code text not null,
    start_time timestamptz not null,
    end_time timestamptz
        check ((end_time is not null) = (outcome in ('SUCCEEDED', 'DECLINED', 'RETURNED'))),
    -- for the index: a success leaves it as it is
    is_live boolean not null generated always as (outcome <> 'DECLINED') stored,
    primary key (operation_id, attempt_number)
) with (fillfactor = 40);  -- its answer finds room beside it, and touches no index
-- At most one attempt is open or has succeeded: no second demand before the first has surely moved
-- nothing.
create unique index attempt_live on attempt (operation_id) where is_live;
create trigger never_deleted before delete or truncate on attempt
    for each statement execute function reject_change();
grant select, insert on attempt to {service};
grant update (outcome, provider_reference, moved_amount, moved_currency, failure_reason,
    decline_code, end_time) on attempt to {service};

-- What has to be done. A row leaves when its demand has come to its end, and so has what follows
-- from it.
create table operation (
    operation_id text collate "C" primary key,
    provider text not null,
    -- null: nothing is due, it is a dead letter; infinity: it waits for a person to decide
    next_attempt_time timestamptz,
    lease_until timestamptz not null,
    lease_token bigint not null,
    -- false: the last holder gave its lease back; else it may have sent the demand and not have
    -- lived to say so
    is_leased boolean not null,
    maybe_sent boolean not null,  -- the demand may have reached the provider
    lookup_only boolean not null,  -- it is not sent again, only looked up
    -- how often each kind of trouble has come since it last progressed
    retry_counts jsonb not null default '{}',
    sent_time timestamptz,  -- when it may last have been sent; null: it was not
    -- how often the provider did not know it since then
    not_found_count int not null default 0 check (not_found_count >= 0),
    -- what is wanted of it has changed since it was claimed: its holder gives it back due at
    -- once
    has_changed boolean not null default false,
    -- of a dead letter: when its time is up, and it is to be ended; null: never
    expire_time timestamptz,
    retry_reason text not null,  -- the last one
    detail text not null,
    -- what it waited for when it was last postponed, as its service names it; "": it is new, or
    -- under way
    phase text not null default '',
    phase_start_time timestamptz not null default clock(),  -- when that began
    -- From when on it can be claimed; null: not before a person has decided. The claim's index
    -- holds nothing else.
    ready_time timestamptz generated always as (case when next_attempt_time < 'infinity'
        then greatest(next_attempt_time, lease_until) end) stored
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
create index operation_ready on operation (provider, ready_time, operation_id)
    where ready_time is not null;
create index operation_by_phase on operation (phase, phase_start_time)
    where next_attempt_time is not null;
create index operation_rejected on operation (operation_id) where retry_reason = 'CALLER_REJECTED'
    and next_attempt_time is not null;
create index operation_by_expire_time on operation (expire_time, operation_id)
    where expire_time is not null
    and next_attempt_time is null;
create index operation_failing on operation (retry_reason, provider)
    where retry_reason in ('UNAUTHORIZED', 'CIRCUIT_OPEN')
    and next_attempt_time is not null;
grant select, insert, update, delete on operation to {service};
"""
"""The demands of a schema on providers: their attempts, and their due work."""

DEAD_LETTERS = """
-- What is not tried again before a person has decided. Rows stay for ever; one for each time.
create table dead_letter (
    dead_letter_id text collate "C" primary key,
    resource_name text collate "C" not null,  -- "{collection}/{id}"
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
    unique (resource_name, number),
    check (dead_letter_id = translate(resource_name, '/', '-') || '-' || number)
);
create unique index dead_letter_open on dead_letter (resource_name) where state = 'OPEN';
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
"""The dead letters of a schema that has due work; after its outbox."""

ALERTS = """
-- What a person should know of. One that is found again is the same one, until it has ended.
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

-- Work that one process does at a time for all of them.
create table leader_lease (name text primary key, owner_id uuid not null,
    lease_until timestamptz not null);
grant select, insert, update on leader_lease to {service};
""" + require_event(
    "alert", "an alert", "'alerts/' || alert_id", "case when end_time is null then 1 else 2 end"
)
"""The alerts of a schema, and whose turn it is to raise them; after its outbox."""

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
"""How dead letters and alerts are found by what `event_has_change` is asked for."""


UNSEALED: Mapping[str, frozenset[str]] = {
    "payment": frozenset(
        {"payment_order", "checkout_unpaid", "provider_money"}
    ),  # recomputed from sealed history, payments, attempts and unapplied charges
    # recomputed from the chain of hashes
    "ledger": frozenset({"head", "account", "tx", "entry", "relayed"}),
    "wallet": frozenset({"wallet"}),  # recomputed from its entries and policies
    "payout": frozenset({"payout_in_state"}),  # recomputed from payouts
    "event": frozenset({"head"}),  # recomputed from the events
}
"""Tables without seals, by schema, besides `commit_marker`: verify recomputes them. The sandbox's
tables are another's, and have none.
"""

SEALED_ON_UPDATE: Mapping[str, str] = {
    "payment.attempt": (
        "(t.outcome, t.provider_reference, t.failure_reason, t.decline_code) = ('', '', '', '') "
        "and t.moved_amount is null and t.end_time is null"
    ),
    "payment.operation": (
        "(t.retry_reason, t.detail, t.retry_counts::text, t.not_found_count, t.lookup_only, "
        "t.has_changed, t.maybe_sent) = "
        "('', '', '{}', 0, false, false, false) and t.expire_time is null"
    ),
}
"""Tables whose rows are sealed only once they change, and what a row must be until then: each
payment makes new ones, and they hold nothing that is not derived.
"""

_SEAL = """
-- The hash of the row that its service wrote: whoever else changes the row leaves it as it is, and
-- verify names the row.
create or replace function seal() returns trigger language plpgsql as $$
begin
    new.seal := null;
    new.seal := sha256(record_send(new));
    return new;
end $$;
"""
_SEALED = """
alter table {table} add seal bytea;
create trigger z_sealed before {events} on {table} for each row
    when (session_user = '{service}') execute function seal();
"""


def create(schema: str, *scripts: str) -> None:
    """The first migration of a schema. Each of its tables is sealed, but for those that `UNSEALED`
    names.
    """
    run(schema, _COMMON_OBJECTS, *scripts)
    if schema in UNSEALED:
        tables = re.findall(r"^create table (\w+)", "\n".join(scripts), re.MULTILINE)
        run(
            schema,
            _SEAL,
            *[seal(schema, table) for table in tables if table not in UNSEALED[schema]],
        )


def seal(schema: str, table: str) -> str:
    """Gives each row of a table the hash of its content, written whenever its service writes the
    row. A column that is added later breaks the seals that are there.
    """
    return _SEALED.replace("{table}", table).replace(
        "{events}", "update" if f"{schema}.{table}" in SEALED_ON_UPDATE else "insert or update"
    )


_script_collector: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def collect_scripts(upgrade: Callable[[], None]) -> list[str]:
    """The SQL that a migration runs; none of it is run."""
    scripts: list[str] = []
    token = _script_collector.set(scripts)
    try:
        upgrade()
    finally:
        _script_collector.reset(token)
    return scripts


def run(schema: str, *scripts: str) -> None:
    """Runs SQL in the schema as its owner; {schema} stands for its name, {service} and {reader} for
    the service's role and its read-only role.
    """
    collector = _script_collector.get()
    if collector is not None:
        collector += [schema, *scripts]
        return
    connection = op.get_bind()
    roles = op.get_context().config.attributes["roles"]  # type: ignore[union-attr]
    connection.execute(text(f"set local search_path = {schema}, pg_temp"))
    # past SQLAlchemy, which takes every % for a placeholder
    driver: Any = connection.connection.driver_connection
    for script in scripts:
        driver.execute(
            script.replace("{schema}", schema)
            .replace("{service}", roles["service"])
            .replace("{reader}", roles["reader"])
        )


def build_index(schema: str, name: str, definition: str, *, unique: bool = False) -> None:
    """Builds an index while the table is written, outside a transaction. `definition`: all behind
    "on". One that was left half-built is built anew.

    A migration that builds one does nothing else.
    """
    statement = (
        f"create {'unique ' if unique else ''}index concurrently if not exists {name} on "
        f"{definition}"
    )
    collector = _script_collector.get()
    if collector is not None:
        collector += [schema, statement]
        return
    with op.get_context().autocommit_block():
        driver: Any = op.get_bind().connection.driver_connection
        driver.execute(f"set search_path = {schema}, pg_temp")
        # it waits for the transactions that were open before it, and blocks nobody meanwhile
        driver.execute("set lock_timeout = '10min'")
        if (
            driver.execute(
                "select from pg_index where indexrelid = to_regclass(%s) and not indisvalid",
                (name,),
            ).fetchone()
            is not None
        ):
            driver.execute(f"drop index concurrently {name}")
        driver.execute(statement)
