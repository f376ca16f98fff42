"""Rules that each statement on a table must satisfy, as triggers: SQL for the migrations."""

from collections.abc import Mapping, Sequence

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
    """Returns a rule that each statement on a table must satisfy. `violations` selects the rows
    that break it and the error message.

    The select sees all rows of the statement as `changed`, and on an update with `with_old_rows`
    also the previous rows. It looks up related rows by key; "offset 0" keeps this a lookup. On
    tables that grow fast the planner's statistics are old. A join would therefore read them whole,
    or once per row.

    A session plans the select once, because custom plans cost a millisecond per trigger and batch.
    If the tables are nearly empty then, a scan is cheapest, and the plan is kept until they are
    analyzed. With such a plan a lookup of one key took 189 ms at 200,000 rows. Scans are therefore
    disabled.
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
    """E1: selects the changes of a statement that have no event in its transaction."""
    return (
        f"select {subject}, {version} from changed where {where} except select * from "
        "recorded_event"
    )


def require_event(
    table: str, noun: str, subject: str, version: str = "version", *, where: str = "true"
) -> str:
    """E1: returns a rule that no row of a table is written without its event. `noun` names the row
    in the error message; `where` selects the rows whose events are recorded.
    """
    message = f"{noun} changed without its event"
    return statement_rule(
        f"{table}_has_event",
        table,
        (changes_without_event(subject, version, where=where), message),
        on=("insert", "update"),
    )


def require_change(change_selects: Mapping[str, str]) -> str:
    """E1: returns a rule that every event belongs to a change. `change_selects` gives, by
    collection, a select of version x.version of the resource {id}.
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
        "event_has_change", "outbox", (unmatched_events, "an event has no change")
    )
