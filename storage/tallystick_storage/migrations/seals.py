"""Seals: hashes of rows, which show `verify` a change by any role but the service's."""

from collections.abc import Mapping

SEALED_ON_UPDATE: Mapping[str, str] = {
    "event.horizon": "t.cursor = 0",
    "payment.attempt": (
        "(t.outcome, t.provider_reference, t.failure_reason, t.decline_code) = ('', '', '', '') "
        "and (t.routing_rule, t.routing_reason, t.fallback_provider) = ('', '', '') "
        "and t.moved_amount is null and t.provider_fee is null and t.end_time is null"
    ),
    "payment.operation": (
        "(t.retry_reason, t.detail, t.retry_counts::text, t.not_found_count, t.lookup_only, "
        "t.has_changed, t.maybe_sent) = "
        "('', '', '{}', 0, false, false, false) and t.expire_time is null"
    ),
}
"""Tables whose rows are sealed only when they first change, and the condition that a row meets
until then. Every payment creates such rows, and they contain only derived values. A row that does
not meet the condition is sealed from the start.
"""

UNSEALED_ROWS: Mapping[str, str] = {
    **SEALED_ON_UPDATE,
    "payment.attempt": f"{SEALED_ON_UPDATE['payment.attempt']} and t.provider_request_id = ''",
}
"""As SEALED_ON_UPDATE, with the columns that later migrations have added. They have their default
until the row first changes.
"""

SEAL_FUNCTION = """
-- The hash of the row that its service wrote. If another role changes the row, the hash stays as it
-- is and verify reports the row.
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
_SEALED_AT_FIRST = """
create trigger z_sealed_at_first before insert on {table} for each row
    when (session_user = '{service}' and not ({condition})) execute function seal();
"""


_RESEAL = """
do $$
declare
    content text;
    key text;
    block_count constant bigint := pg_relation_size(cast('{table}' as regclass))
        / cast(current_setting('block_size') as bigint);
begin
    -- generated columns do not exist yet when a trigger seals a row
    select string_agg(case when attgenerated <> '' or attname = 'seal'
        then format('null::%s', format_type(atttypid, null)) else format('t.%I', attname) end,
        ', ' order by attnum) into content
    from pg_attribute where attrelid = cast('{table}' as regclass) and attnum > 0
        and not attisdropped;
    select string_agg(format('t.%I', attname), ', ' order by place) into key
    from pg_index, unnest(indkey) with ordinality as k (number, place)
        join pg_attribute on attnum = number
    where indrelid = cast('{table}' as regclass) and indisprimary and attrelid = indrelid;
    for block in 0 .. block_count by {batch_blocks} loop
        -- in the order in which processes lock rows, so that there is no deadlock with them
        execute format('with l as materialized (select t.ctid from {table} t '
            'where t.seal is not null and t.ctid >= %1$L and t.ctid < %2$L '
            'order by %3$s for update) '
            'update {table} t set seal = sha256(record_send(row(%4$s))) from l '
            'where t.ctid = l.ctid and t.ctid >= %1$L and t.ctid < %2$L',
            format('(%s,0)', block), format('(%s,0)', block + {batch_blocks}), key, content);
        commit;
    end loop;
end $$;
"""
_BATCH_BLOCKS = 250
"""Some 5,000 rows: they are locked for a part of a second."""


def reseal(table: str) -> str:
    """Seals the sealed rows of a table again, after a column was added. It commits in batches, so
    it runs outside a transaction; interrupted, it can be repeated. Rows that a process writes
    meanwhile are sealed by their trigger. Run `verify` before: a row that was changed by another
    role is sealed as it is.
    """
    return _RESEAL.replace("{table}", table).replace("{batch_blocks}", str(_BATCH_BLOCKS))


def seal(schema: str, table: str) -> str:
    """Gives each row of a table a hash of its content, written whenever its service writes the row.
    A column that is added later invalidates the existing seals, see `reseal`.
    """
    condition = SEALED_ON_UPDATE.get(f"{schema}.{table}", "")
    script = _SEALED.replace("{events}", "update" if condition else "insert or update")
    if condition:
        script += _SEALED_AT_FIRST.replace("{condition}", condition.replace("t.", "new."))
    return script.replace("{table}", table)
