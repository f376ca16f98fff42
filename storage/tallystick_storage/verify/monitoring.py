"""The verify queries on the history of metrics."""

from __future__ import annotations

from tallystick_storage.verify.shared import seal_queries

INCONSISTENCY_QUERIES: dict[str, str] = {}
QUERIES = {
    **seal_queries("monitoring"),
    "monitoring.count": "select count(*) as rows from series",
    "monitoring.bucket_counts": """
        select 'monitoring.sample of series ' || s.series_id as name,
            'has not one number for each bucket' as what
        from series s where exists (
            select from sample x where x.series_id = s.series_id
                and cardinality(x.bucket_counts) is distinct from
                    case when s.kind = 'HISTOGRAM' then cardinality(s.boundaries) + 1 end)
        order by s.series_id""",
}
