"""Shared by the queries of several schemas: seals, and the conversion of values to text."""

from __future__ import annotations

from tallystick_storage.migrations.seals import UNSEALED_ROWS

_SEALED_TABLES = """
    select c.relname as name,
        (select string_agg(format('t.%I', k.attname), ', '
            order by array_position(i.indkey::int2[], k.attnum))
         from pg_index i join pg_attribute k on k.attrelid = i.indrelid
             and k.attnum = any (i.indkey)
         where i.indrelid = c.oid and i.indisprimary) as key,
        string_agg(case when a.attgenerated <> '' or a.attname = 'seal'
            then format('null::%s', format_type(a.atttypid, null))
            else format('t.%I', a.attname) end, ', ' order by a.attnum) as content
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        and not a.attisdropped
    where c.relnamespace = cast(:schema as regnamespace) and c.relkind = 'r'
        and exists (select from pg_attribute s where s.attrelid = c.oid and s.attname = 'seal'
            and not s.attisdropped)
    group by c.oid, c.relname order by c.relname"""
_BROKEN_SEALS = """
    select concat_ws(' ', {key}) as key, t.seal is null as missing from {table} t
    where {unsealed} and t.seal is distinct from sha256(record_send(row({content})))
        order by {key}"""


def broken_seals(schema: str, table: str, key: str, content: str) -> str:
    """The query for the rows of a table that differ from what their service wrote. The other
    arguments are as `sealed_tables` returns them.
    """
    unsealed_condition = UNSEALED_ROWS.get(f"{schema}.{table}", "false")
    return _BROKEN_SEALS.format(
        table=table,
        key=key,
        content=content,
        unsealed=f"not (t.seal is null and coalesce({unsealed_condition}, false))",
    )


def canonical_text(*expressions: str) -> str:
    """The SQL for the canonical text of some values, as `tallystick_core.fingerprint` makes it."""
    return " || ".join(
        f"octet_length({expression}::text) || ':' || {expression}" for expression in expressions
    )


def to_microseconds(time: str) -> str:
    return f"trunc(extract(epoch from {time}) * 1000000)"


# A transaction's reference, buyer and entries as one text, as
# `tallystick_server.verify.report.format_posting` writes them.
POSTING = """t.external_reference || ' ' || t.buyer_account || ': ' || (
    select string_agg(a.account || ' ' || e.currency || ' ' || e.amount, ', '
        order by e.line_number)
    from entry e join account a on a.account_id = e.account_id
    where e.book = t.book and e.sequence = t.sequence)"""
# The versions of a resource, as one text per thousand, so that no row grows without bound.
VERSIONS = "{0} / 1000 as block, string_agg({0}::text, ' ' order by {0}) as versions"
UNPUBLISHED_VERSIONS = f"""
    select aggregate_id, {VERSIONS.format("version")}
    from (
        select unnest(aggregate_ids) collate "C" as aggregate_id, unnest(versions) as version
            from outbox
        union all select aggregate_id, version from rejected_event) o
    group by aggregate_id, block order by aggregate_id, block"""
ALERTS = """
        select 'alerts/' || alert_id as aggregate_id, case when end_time is null then 1
            else 2 end as version, '{schema}.alert' as name from alert"""
"""The versions of alerts, which every schema has; {schema} is the schema's name."""
ALERTS_AND_DEAD_LETTERS = f"""{ALERTS}
        union all select 'deadLetters/' || dead_letter_id, case when state = 'OPEN' then 1
            else 2 end, '{{schema}}.dead_letter' from dead_letter"""
"""The versions of dead letters and alerts."""


def operations_query(open_operations: str) -> str:
    """The query for the operations of a schema. `open_operations`: selects kind, operation_id and
    open (what waits for it) of those that are not completed, except webhook events.
    """
    return f"""
        with o as ({open_operations}
            union all select 'webhook_event', webhook_event_id, webhook_event_id
                from webhook_event where state = 'RECEIVED'),
        l as (select kind, operation_id, true as is_open from dead_letter where state = 'OPEN'),
        d as (select kind, operation_id, lease_token, next_try_time from operation)
        select kind || ' ' || operation_id as operation_id, o.open,
            d.lease_token is not null as is_stored, d.next_try_time is not null as is_due,
            l.is_open is not null as is_dead_lettered
        from o full join d using (kind, operation_id) full join l using (kind, operation_id)
            order by kind, operation_id"""


def seal_queries(schema: str) -> dict[str, str]:
    """The queries of a schema with sealed rows: one lists its tables, and one finds the changed
    rows of a table by a statement that the call passes.
    """
    return {f"{schema}.sealed_tables": _SEALED_TABLES, f"{schema}.broken_seals": ""}
