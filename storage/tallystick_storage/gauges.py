"""Metrics that are read from a service's database; the same in every schema that has the tables.

Each query reads a limited number of rows, however many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tallystick_storage.alerts import OLDEST_IN_OUTBOX
from tallystick_storage.sql import Connection, text


@dataclass(frozen=True, slots=True)
class GaugeQuery:
    """A query for the values of one metric, named as `observability/names.py` declares it. Each row
    has the values of the metric's attributes, without the service, and then the number.
    """

    metric: str
    query: str


_MAX_COUNTED = 10_000
_MAX_ADDED = 20_000
_MAX_NUMBER = 2**63 - 1  # what OTLP can carry
_ALERTS_OPEN = f"""
    select kind, count(*) from (
        select kind from alert where end_time is null limit {_MAX_COUNTED}) a group by kind
"""
_OUTBOX_LAG = """
    select cast(greatest(extract(epoch from (select clock()) - coalesce(
        (select o.create_time from ({oldest}) o), (select clock()))), 0) as float8)
"""
_DEAD_LETTERS_OPEN = f"""
    select cause, count(*) from (
        select cause from dead_letter where state = 'OPEN' limit {_MAX_COUNTED}) d group by cause
"""
_OPERATIONS_QUEUED = f"""
    select retry_reason, count(*) from (select retry_reason from operation
        where next_try_time is not null limit {_MAX_COUNTED}) op group by retry_reason
"""
# The operations that are due, the oldest first for each provider, by one index probe per provider.
_DUE = """
    with recursive p (provider) as (
        select min(provider) from operation where ready_time is not null
        union all
        select (select min(op.provider) from operation op where op.provider > p.provider
            and op.ready_time is not null) from p where p.provider is not null)
    select {result} from p cross join lateral (
        select op.ready_time from operation op where op.provider = p.provider
            and op.ready_time <= (select clock()) order by op.ready_time limit {limit}) due
"""
_OPERATIONS_DUE = _DUE.format(result="count(*)", limit=_MAX_COUNTED)
_OLDEST_DUE_AGE = _DUE.format(
    result="""
        cast(coalesce(extract(epoch from max((select clock()) - due.ready_time)), 0) as float8)""",
    limit=1,
)
_MONEY_IN_FLIGHT = f"""
    select a.currency, sum(a.amount)
    from (select kind, operation_id from operation limit {_MAX_ADDED}) op
    cross join lateral (select a.currency, a.amount from attempt a
        where a.kind = op.kind and a.operation_id = op.operation_id and a.is_live offset 0) a
    group by a.currency
"""


_WORK_OPEN = f"""
    select '{{queue}}', (select count(*) from (select from {{rows}} limit {_MAX_COUNTED}) w)
"""
_OLDEST_WORK_AGE = """
    select '{queue}', cast(coalesce(extract(epoch from (select clock())
        - (select create_time from {rows} order by create_time limit 1)), 0) as float8)
"""


def event_gauge_queries(
    oldest_query: str = OLDEST_IN_OUTBOX, queues: Mapping[str, str] = MappingProxyType({})
) -> Sequence[GaugeQuery]:
    """The gauges of every service that has events and alerts. `oldest_query` selects the
    create_time of the event that has waited longest, if any. `queues`: what waits for a person
    except alerts, by the name of the queue: a table with a create_time, and a condition. It needs
    an index by time.
    """
    all_queues = {"ALERT": "alert where end_time is null", **queues}
    return (
        GaugeQuery("tallystick.alerts.open", _ALERTS_OPEN),
        GaugeQuery("tallystick.outbox.lag", _OUTBOX_LAG.format(oldest=oldest_query)),
        GaugeQuery("tallystick.work.open", _of_queues(_WORK_OPEN, all_queues)),
        GaugeQuery("tallystick.work.oldest.age", _of_queues(_OLDEST_WORK_AGE, all_queues)),
    )


def _of_queues(query: str, queues: Mapping[str, str]) -> str:
    return " union all ".join(
        query.format(queue=queue, rows=rows) for queue, rows in queues.items()
    )


def operation_gauge_queries(queues: Mapping[str, str]) -> Sequence[GaugeQuery]:
    """The gauges of a service that calls providers. `queues`: as for event_gauge_queries, without
    dead letters.
    """
    return (
        *event_gauge_queries(queues={"DEAD_LETTER": "dead_letter where state = 'OPEN'", **queues}),
        GaugeQuery("tallystick.dead_letters.open", _DEAD_LETTERS_OPEN),
        GaugeQuery("tallystick.operations.queued", _OPERATIONS_QUEUED),
        GaugeQuery("tallystick.operations.due", _OPERATIONS_DUE),
        GaugeQuery("tallystick.operations.oldest_due.age", _OLDEST_DUE_AGE),
        GaugeQuery("tallystick.money.in_flight", _MONEY_IN_FLIGHT),
    )


def read_gauges(
    connection: Connection, queries: Sequence[GaugeQuery]
) -> Mapping[str, Mapping[tuple[str, ...], int | float]]:
    """The values of each metric by the values of its attributes, without the service."""
    return {
        query.metric: {
            tuple(attributes): number
            if isinstance(number, float)
            else min(int(number), _MAX_NUMBER)
            for *attributes, number in connection.execute(text(query.query))
        }
        for query in queries
    }
