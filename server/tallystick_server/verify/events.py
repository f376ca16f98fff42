"""Checks that every change has its event, and that every unfinished operation is scheduled."""

from __future__ import annotations

import heapq
from datetime import timedelta
from itertools import groupby
from typing import Any, NamedTuple

from tallystick_server.app.services import SERVICES
from tallystick_server.verify.report import Check, QueryRunner, merge_join, sum_counts

_MAX_CLOCK_DIFFERENCE = timedelta(hours=1)


def check_operations(read: QueryRunner) -> Check:
    """Every unfinished operation is scheduled or dead-lettered."""
    check = Check("each open operation is scheduled or a dead letter", "P5")
    for spec in SERVICES:
        for row in read(f"{spec.name}.operations") if spec.calls_providers else ():
            check.count_row()
            name = f"{spec.name}.operation {row.operation_id}"
            if not row.is_stored:
                check.fail(name, f"is missing, but {row.open} is open")
            elif row.open is None:
                check.fail(name, "is scheduled, but has ended")
            elif row.is_due == row.is_dead_lettered:
                check.fail(
                    name,
                    "is scheduled, but has an open dead letter"
                    if row.is_due
                    else "is not scheduled and has no open dead letter",
                )
    return check


def check_events(read: QueryRunner) -> Check:
    """The stream has no gap. Every change of an order, payout or wallet is in it or still in the
    outbox.
    """
    check = Check("each change has its event", "E1 E2", sum_counts(read("event.count")))
    heads = [*read("event.head")]
    if len(heads) != 1:
        check.fail("event.head", f"has {len(heads)} rows, and must have one")
    horizon = _load_horizon(check, read)
    check.fail_each(read("event.gaps"))
    for totals in read("event.count"):
        for head in heads:
            if head.cursor != totals.last:
                check.fail(
                    "event.head", f"is at {head.cursor}, but the events end at {totals.last}"
                )
    for service, prefix in _aggregate_prefixes().items():
        versions_with_events = merge_join(
            read(f"{service}.versions", since=horizon.since),
            _block_key,
            read("event.versions", prefix=prefix),
            _block_key,
        )
        for (aggregate, _), pair, outbox_row in merge_join(
            versions_with_events, lambda item: item[0], read(f"{service}.outbox"), _block_key
        ):
            changes, events = (pair[1], pair[2]) if pair is not None else (None, None)
            if changes is None or (events is not None and changes.versions == events.versions):
                continue
            event_versions = {
                version
                for row in (events, outbox_row)
                if row is not None
                for version in row.versions.split()
            }
            for version in changes.versions.split():
                if version not in event_versions:
                    check.fail(f"{service} {aggregate} version {version}", "has no event")
    return check


def check_versions(read: QueryRunner) -> Check:
    """Every resource with events but no history is stored at the version of its last event. Each
    version has one event.
    """
    check = Check("each resource is at the version of its last event", "E1")
    horizon = _load_horizon(check, read)
    services = [spec.name for spec in SERVICES if spec.publishes_events]
    tables = _tables_by_collection()
    resources = heapq.merge(
        *[read(f"{service}.last_versions") for service in services], key=_aggregate_id
    )
    outbox_groups = groupby(
        heapq.merge(*[read(f"{service}.outbox") for service in services], key=_aggregate_id),
        key=_aggregate_id,
    )
    versions_with_events = merge_join(
        resources,
        _aggregate_id,
        read("event.last_versions", collections=[*tables]),
        _aggregate_id,
    )
    for key, pair, outbox in merge_join(
        versions_with_events, lambda item: item[0], outbox_groups, lambda item: item[0]
    ):
        if pair is None:
            continue
        check.count_row()
        _, row, event = pair
        if row is None:
            check.fail(
                f"{tables[key.partition('/')[0]]} {key.partition('/')[2]}",
                f"is missing, but event.event has its version {event.version}",
            )
        elif outbox is None and not _has_all_events(row.version, event, horizon):
            check.fail(
                f"{row.name} {key.partition('/')[2]}",
                f"is at version {row.version}, but event.event has {event.events if event else 0} "
                "of its versions",
            )
    return check


class _Horizon(NamedTuple):
    """How far events were deleted at the end of their retention. Each change after `since` (a time
    of PostgreSQL) must still have its event.
    """

    cursor: int = 0
    since: str = "-infinity"


def _load_horizon(check: Check, read: QueryRunner) -> _Horizon:
    rows = [*read("event.horizon")]
    if len(rows) != 1:
        check.fail("event.horizon", f"has {len(rows)} rows, and must have one")
    if not rows or not rows[0].cursor:
        return _Horizon()
    # An event is published after its change, by the clock of another database.
    return _Horizon(rows[0].cursor, str(rows[0].publish_time + _MAX_CLOCK_DIFFERENCE))


def _has_all_events(version: int, event: Any, horizon: _Horizon) -> bool:
    """Whether a resource has an event for each version. The events of its first versions may have
    been deleted at the end of their retention.
    """
    if event is None:
        return horizon.cursor > 0
    first_version = event.first_version if horizon.cursor else 1
    return (event.version, event.events) == (version, version - first_version + 1)


def _block_key(row: Any) -> tuple[str, int]:
    return (row.aggregate_id, row.block)


def _aggregate_id(row: Any) -> str:
    return str(row.aggregate_id)


def _aggregate_prefixes() -> dict[str, str]:
    """The id prefixes of aggregates with a history, by their service."""
    return {
        spec.name: f"{spec.history_collection}/" for spec in SERVICES if spec.history_collection
    }


def _tables_by_collection() -> dict[str, str]:
    """The tables of resources with events and without a history, by collection."""
    tables = {"deadLetters": "dead_letter", "alerts": "alert"}
    for spec in SERVICES:
        tables |= spec.event_tables
    return tables


CHECKS = (check_events, check_versions)
