"""Payout schedules: sets and shows them as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tallystick.payout.v1 import payout_pb2
from tallystick_core.errors import version_mismatch_error
from tallystick_core.money import format_amount
from tallystick_core.payout.quote import PayoutTerms
from tallystick_core.payout.schedule import Interval, Schedule, Weekday, next_time, parse_schedule
from tallystick_server.outbox.events import record_events
from tallystick_server.payout import convert, events
from tallystick_storage import clock
from tallystick_storage.database import Database
from tallystick_storage.payout import schedules as store
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class ScheduleUpdate:
    """A parsed schedule update; `seller_account` "": the default schedule.

    `cut_off` and `time_zone` as sent.
    """

    seller_account: str
    currency: str
    schedule: Schedule
    cut_off: str
    time_zone: str
    terms: PayoutTerms
    caller: str
    traceparent: str
    has_own_terms: bool
    """Whether it also sets the terms; otherwise the current terms stay."""
    expected_version: int | None
    """The version to replace; 0: none exists; None: any version."""


class PayoutSchedules:
    """Sets when and on what terms sellers are paid."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set(self, update: ScheduleUpdate, owner: str) -> bool:
        """Returns True if the schedule has changed, False if equal values were set before.

        `owner`: the seller's owner; "": the platform's default schedule.

        Raises VERSION_MISMATCH if the current version is not the expected one.
        """

        def set_(connection: Connection) -> bool:
            new = _to_row(update, owner, clock.now(connection))
            row = store.upsert(connection, new)
            if row is not None:
                with record_events(connection, [row]) as publish_request:
                    events.add_schedule_changed(
                        publish_request, convert.schedule(row), owner, row.traceparent
                    )
            elif update.expected_version is not None:
                version, is_equal = store.compare_stored(connection, new)
                if not is_equal:
                    raise version_mismatch_error(version)
            return row is not None

        return await self._database.transact(set_)

    async def get(
        self, seller_account: str, currency: str, *, changed: bool = False
    ) -> payout_pb2.PayoutSchedule:
        """Returns the current schedule; MANUAL without terms if none was set.

        `changed` as in `Database.read`.
        """
        key = (seller_account, currency)
        rows = await self._database.read(
            lambda connection: store.find_effective_schedules(connection, [key]), changed=changed
        )
        if key in rows:
            return convert.schedule(rows[key])
        zero = format_amount(0, currency)
        return payout_pb2.PayoutSchedule(
            currency=currency,
            interval=payout_pb2.PAYOUT_INTERVAL_MANUAL,
            minimum_amount=zero,
            fee=zero,
            reserve=zero,
        )


def _to_row(update: ScheduleUpdate, owner: str, now: datetime) -> store.NewSchedule:
    schedule = update.schedule
    return store.NewSchedule(
        seller_account=update.seller_account,
        currency=update.currency,
        interval=schedule.interval,
        weekday=schedule.weekday or "",
        day_of_month=schedule.day_of_month,
        cut_off=update.cut_off,
        time_zone=update.time_zone,
        minimum_amount=update.terms.minimum_amount,
        fee=update.terms.fee,
        reserve=update.terms.reserve,
        has_own_terms=update.has_own_terms,
        owner=owner,
        next_time=next_time(schedule, now),
        caller=update.caller,
        traceparent=update.traceparent,
        expected_version=update.expected_version,
    )


def schedule_from_row(row: store.DueScheduleRow) -> Schedule:
    """The cut-offs of a stored schedule."""
    weekday = Weekday(row.weekday) if row.weekday else None
    return parse_schedule(
        Interval(row.interval), weekday, row.day_of_month, row.cut_off, row.time_zone
    )
