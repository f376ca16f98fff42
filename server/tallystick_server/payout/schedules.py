"""Schedules: set whole, and shown as they hold."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.payout.v1 import payout_pb2
from tallystick_core.money import format_amount
from tallystick_core.payable import Terms
from tallystick_core.refusal import version_mismatch
from tallystick_core.schedule import Interval, Schedule, Weekday, next_time, parse_schedule
from tallystick_server.payout import encode, events
from tallystick_server.runtime.relay import telling
from tallystick_storage.database import Database
from tallystick_storage.payout import schedule as store


@dataclass(frozen=True, slots=True)
class Wanted:
    """A schedule as a caller sets it, parsed; `seller_account` "": the default. `cut_off` and `time_zone` as they were sent."""

    seller_account: str
    currency: str
    schedule: Schedule
    cut_off: str
    time_zone: str
    terms: Terms
    caller: str
    traceparent: str
    sets_terms: bool
    """Whether it sets the terms too; otherwise those that hold stay."""
    expected_version: int | None
    """The version that it is to replace, 0: none; None: whichever there is."""


class Schedules:
    """When sellers are paid, and on what terms."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set(self, wanted: Wanted, owner: str) -> bool:
        """Whether it holds only now; equal values held before, if not. `owner`: the seller's, "": the default is the platform's.

        Raises VERSION_MISMATCH where another version than the expected one would be replaced.
        """

        def set_(connection: Connection) -> bool:
            new = _to_store(wanted, owner, store.now(connection))
            row = store.set_(connection, new)
            if row is not None:
                with telling(connection, [row]) as told:
                    events.schedule_changed(told, encode.schedule(row), owner, row.traceparent)
            elif wanted.expected_version is not None:
                version, equal = store.stands(connection, new)
                if not equal:
                    raise version_mismatch(version)
            return row is not None

        return await self._database.transact(set_)

    async def get(self, seller_account: str, currency: str, *, changed: bool = False) -> payout_pb2.PayoutSchedule:
        """The schedule that holds; MANUAL without any terms where none was set. `changed` as in `Database.read`."""
        key = (seller_account, currency)
        held = await self._database.read(lambda connection: store.holding(connection, [key]), changed=changed)
        if key in held:
            return encode.schedule(held[key])
        zero = format_amount(0, currency)
        return payout_pb2.PayoutSchedule(currency=currency, interval=payout_pb2.PAYOUT_INTERVAL_MANUAL, minimum_amount=zero, fee=zero, reserve=zero)


def _to_store(wanted: Wanted, owner: str, now: datetime) -> store.NewSchedule:
    schedule = wanted.schedule
    return store.NewSchedule(
        seller_account=wanted.seller_account,
        currency=wanted.currency,
        interval=schedule.interval,
        weekday=schedule.weekday or "",
        day_of_month=schedule.day_of_month,
        cut_off=wanted.cut_off,
        time_zone=wanted.time_zone,
        minimum_amount=wanted.terms.minimum_amount,
        fee=wanted.terms.fee,
        reserve=wanted.terms.reserve,
        sets_terms=wanted.sets_terms,
        owner=owner,
        next_time=next_time(schedule, now),
        caller=wanted.caller,
        traceparent=wanted.traceparent,
        expected_version=wanted.expected_version,
    )


def stored_schedule(row: Row[Any]) -> Schedule:
    """The cut-offs of a stored schedule."""
    weekday = Weekday(row.weekday) if row.weekday else None
    return parse_schedule(Interval(row.interval), weekday, row.day_of_month, row.cut_off, row.time_zone)
