"""The history of metrics, and traces."""

from tallystick_storage.migrations import create

revision = "monitoring_0001"
down_revision = None
branch_labels = ("monitoring",)
depends_on = None

TABLES = """
-- A process that records, from its start to its end.
create table process (
    process_id uuid primary key,
    name text not null check (name <> ''),
    last_sequence bigint not null check (last_sequence > 0),  -- the number of its last request
    last_record_time timestamptz not null
) with (fillfactor = 50);
create index process_by_time on process (last_record_time);

create table series (
    series_id bigint generated always as identity primary key,
    process_id uuid not null references process,
    metric text collate "C" not null check (metric <> ''),
    attributes jsonb not null check (jsonb_typeof(attributes) = 'object'),
    kind text not null check (kind in ('COUNTER', 'GAUGE', 'HISTOGRAM')),
    -- the upper limits of the buckets of a histogram; there is one more bucket
    boundaries float8[] not null check ((cardinality(boundaries) > 0) = (kind = 'HISTOGRAM')),
    create_time timestamptz not null,
    -- the totals of the last deleted sample
    base_value float8 not null default 0,
    base_bucket_counts bigint[] not null default '{}',
    unique (process_id, metric, attributes)
);
create index series_by_metric on series (metric, series_id);

-- What a series was at a time. Of a counter and a histogram it is the total since the start of the
-- process, and only those that have changed have a sample.
create table sample (
    series_id bigint not null references series,
    record_time timestamptz not null,
    value float8 not null,
    bucket_counts bigint[],  -- of a histogram
    primary key (series_id, record_time)
);
create index sample_by_time on sample (record_time, series_id);

-- Up to when samples have been reduced to one for each series and interval of this length.
create table thinning (
    resolution int primary key check (resolution > 0),
    end_time timestamptz not null
);

-- The traces of which a span is stored.
create table trace (
    trace_id text collate "C" primary key,
    name text not null,  -- of the earliest span, as its service
    service_name text not null,
    start_time timestamptz not null,
    end_time timestamptz not null check (end_time >= start_time),
    failed boolean not null,
    span_count int not null check (span_count > 0),
    byte_count bigint not null check (byte_count > 0),
    receive_time timestamptz not null  -- of its first span
) with (fillfactor = 70);
create index trace_by_start on trace (start_time, trace_id);
create index trace_by_receipt on trace (receive_time, trace_id);

create table span (
    trace_id text collate "C" not null references trace,
    span_id text collate "C" not null,
    parent_span_id text not null,  -- "": none
    name text not null,
    kind text not null check (kind in (
        '', 'INTERNAL', 'SERVER', 'CLIENT', 'PRODUCER', 'CONSUMER')),
    service_name text not null,
    start_time timestamptz not null,
    end_time timestamptz not null check (end_time >= start_time),
    failed boolean not null,
    attributes jsonb not null,
    primary key (trace_id, span_id)
);

-- The sums over all traces. Who records or deletes spans locks it first.
create table span_total (
    one boolean primary key check (one),
    span_count bigint not null check (span_count >= 0),
    byte_count bigint not null check (byte_count >= 0)
);
insert into span_total values (true, 0, 0);
"""

GRANTS = """
grant select, insert, update (last_sequence, last_record_time), delete on process to {service};
grant select, insert, update (base_value, base_bucket_counts), delete on series to {service};
grant select, insert, delete on sample to {service};
grant select, insert, update (end_time) on thinning to {service};
grant select, insert, update (name, service_name, start_time, end_time, failed, span_count,
    byte_count), delete on trace to {service};
grant select, insert, delete on span to {service};
grant select, update (span_count, byte_count) on span_total to {service};
"""

# No money depends on them, and old samples are deleted.
UNSEALED = frozenset({"process", "series", "sample", "thinning", "trace", "span", "span_total"})


def upgrade() -> None:
    create("monitoring", TABLES, GRANTS, unsealed=UNSEALED)
