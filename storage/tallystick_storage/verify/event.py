"""The verify queries on the event stream."""

from __future__ import annotations

from tallystick_storage.verify.shared import VERSIONS, seal_queries

INCONSISTENCY_QUERIES: dict[str, str] = {}
QUERIES = {
    **seal_queries("event"),
    "event.head": "select cursor from head",
    "event.horizon": "select cursor, publish_time from horizon",
    "event.count": """
        select count(*) as rows, coalesce(max(cursor), (select max(cursor) from horizon), 0) as last
        from event""",
    "event.gaps": """
        select 'event.event ' || cursor as name, 'follows ' || before || ', with a gap' as what
        from (select cursor, lag(cursor, 1, (select max(cursor) from horizon))
            over (order by cursor) as before from event) e
            where cursor <> before + 1 order by cursor""",
    "event.versions": f"""
        select aggregate_id, {VERSIONS.format("aggregate_version")} from event
            where starts_with(aggregate_id, :prefix)
        group by aggregate_id, block order by aggregate_id, block""",
    # The version of each resource without a history of its own: the version of its last event.
    "event.last_versions": """
        select aggregate_id, max(aggregate_version) as version, count(*) as events,
            min(aggregate_version) as first_version
        from event where split_part(aggregate_id, '/', 1) = any (:collections)
        group by aggregate_id order by aggregate_id""",
}
