"""Runs the payout schedules whose cut-off has passed: creates the batch of a default schedule, and
pays sellers that have a schedule of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tallystick_core.errors import ApiError
from tallystick_core.payout.batch import NewBatch, format_run_id
from tallystick_core.payout.schedule import Schedule, next_time
from tallystick_server.observability import names
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.payout.create_batch import insert_batch
from tallystick_server.payout.create_payout import (
    CreatedPayouts,
    PayoutCreationPlan,
    PayoutCreator,
)
from tallystick_server.payout.page_creator import PayoutPageCreator, build_seller_command
from tallystick_server.payout.schedules import schedule_from_row
from tallystick_server.rpc.service_client import ServiceCallRejected
from tallystick_storage import clock
from tallystick_storage.database import Database
from tallystick_storage.payout import schedules as store
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)

DueSchedule = tuple[store.DueScheduleRow, Schedule]
"""The row of a schedule, and its parsed schedule."""

_MAX_DEFAULT_SCHEDULES = 20
MAX_SELLERS = 500  # paid in one transaction
_ANY_OWNER = ""  # owner filter: a platform run pays the sellers of all owners


class ScheduleRunner:
    """Runs schedules. `page_creator`: decides whether this process is the leader."""

    def __init__(
        self, database: Database, creator: PayoutCreator, page_creator: PayoutPageCreator
    ) -> None:
        self._database = database
        self._creator = creator
        self._page_creator = page_creator

    async def run_due(self) -> None:
        """Runs the schedules whose cut-off has passed."""
        for schedule_row, schedule in await self._parse_schedules(await self._load_due_defaults()):
            await self._start_run(schedule_row, schedule)
        await self._pay_due_sellers()

    async def _load_due_defaults(self) -> Sequence[store.DueScheduleRow]:
        return await self._database.load(
            lambda connection: store.list_due(
                connection, _MAX_DEFAULT_SCHEDULES, defaults_only=True
            )
        )

    async def _load_due_sellers(self) -> Sequence[store.DueScheduleRow]:
        return await self._database.load(
            lambda connection: store.list_due(connection, MAX_SELLERS, defaults_only=False)
        )

    async def _start_run(self, schedule_row: store.DueScheduleRow, schedule: Schedule) -> None:
        """Creates the batch of a default schedule whose cut-off has passed.

        Only one batch is created, even if cut-offs of several days were missed.
        """

        def start(connection: Connection) -> None:
            if self._page_creator.try_acquire_leadership(connection) and store.advance(
                connection, [(schedule_row, next_time(schedule, clock.now(connection)))]
            ):
                new = NewBatch(
                    format_run_id(schedule_row.currency, schedule_row.next_time),
                    schedule_row.caller,
                    _ANY_OWNER,
                    currency=schedule_row.currency,
                )
                insert_batch(connection, new, schedule_row.traceparent, schedule_row.next_time)

        try:
            await self._database.transact(start)
        except Exception as error:  # noqa: BLE001 - one schedule must not block the others
            log_rescheduled(f"the run of all sellers in {schedule_row.currency}", error)
            await self._reschedule([schedule_row])

    async def _pay_due_sellers(self) -> None:
        """Pays the sellers with their own schedule whose cut-off has passed, page by page."""
        sellers = await self._load_due_sellers()
        try:
            while sellers and await self._pay_page(sellers) and len(sellers) == MAX_SELLERS:
                sellers = await self._load_due_sellers()
        # such as an unavailable wallet; batches may still advance
        except (ApiError, ServiceCallRejected) as error:
            log.warning(
                "the schedules of %d sellers are delayed: %s",
                len(sellers),
                error,
                extra=names.SCHEDULE_DELAYED.extra,
            )

    async def _pay_page(self, rows: Sequence[store.DueScheduleRow]) -> bool:
        """Creates the payouts of a page of sellers. Returns whether this process created any."""
        await self._page_creator.wait_for_capacity()
        schedules = await self._parse_schedules(rows)
        results = await self._pay_each(schedules)
        failed_rows = []
        for (schedule_row, _), result in zip(schedules, results, strict=True):
            if isinstance(result, Exception):
                log_rescheduled(
                    f"the schedule of {schedule_row.seller_account} in {schedule_row.currency}",
                    result,
                )
                failed_rows.append(schedule_row)
        await self._reschedule(failed_rows)
        return any(result is True for result in results)

    async def _pay_each(self, schedules: Sequence[DueSchedule]) -> Sequence[bool | Exception]:
        """Creates the payouts together; if one of them prevents that, each alone."""
        try:
            return await bisect_on_error(self._pay, schedules)
        except (ApiError, ServiceCallRejected):  # for the whole page
            raise
        except Exception:  # of one schedule, which must not block the others
            log.exception(
                "the payouts of %d schedules cannot be created together; each is created alone",
                len(schedules),
                extra=names.SCHEDULE_FAILED.extra,
            )
        results: list[bool | Exception] = []
        for due_schedule in schedules:
            try:
                results += await self._pay([due_schedule])
            except Exception as error:  # noqa: BLE001 - one schedule must not block the others
                results.append(error)
        return results

    async def _pay(self, schedules: Sequence[DueSchedule]) -> Sequence[bool | Exception]:
        """Creates the payouts in one transaction. Returns for each whether this process did."""
        commands = [
            build_seller_command(
                schedule_row,
                schedule_row.seller_account,
                run_id=format_run_id(schedule_row.currency, schedule_row.next_time),
                batch_id="",
                owner=_ANY_OWNER,
                balance=None,
            )
            for schedule_row, _ in schedules
        ]

        def pay(
            connection: Connection, plan: PayoutCreationPlan, lease_deadline: float
        ) -> tuple[CreatedPayouts, set[tuple[str, str]]]:
            now = clock.now(connection)
            advanced_keys = store.advance(
                connection,
                [(schedule_row, next_time(schedule, now)) for schedule_row, schedule in schedules],
            )
            # Changed concurrently: these schedules are read again.
            skipped_ids = {
                command.payout.payout_id
                for command in commands
                if command.wallet_key not in advanced_keys
            }
            return self._creator.insert(
                connection, plan.excluding(skipped_ids), lease_deadline
            ), advanced_keys

        advanced_keys = await self._page_creator.create(commands, pay) or set()
        return [command.wallet_key in advanced_keys for command in commands]

    async def _parse_schedules(self, rows: Sequence[store.DueScheduleRow]) -> list[DueSchedule]:
        """Parses rows of schedules.

        A schedule that cannot be parsed, such as one with an unknown time zone, is rescheduled and
        raises an alert.
        """
        schedules, invalid_rows = [], []
        for schedule_row in rows:
            try:
                schedules.append((schedule_row, schedule_from_row(schedule_row)))
            except Exception as error:  # noqa: BLE001 - one schedule must not block the others
                log_rescheduled(
                    f"the schedule of {schedule_row.seller_account or 'all'} in "
                    f"{schedule_row.currency}",
                    error,
                )
                invalid_rows.append(schedule_row)
        await self._reschedule(invalid_rows)
        return schedules

    async def _reschedule(self, rows: Sequence[store.DueScheduleRow]) -> None:
        """Reschedules schedules that cannot be run, so that they do not block the others."""
        if rows:
            await self._database.transact(lambda connection: store.reschedule(connection, rows))


def log_rescheduled(subject: str, error: Exception) -> None:
    """Logs why something waits; with a traceback unless the error is an expected rejection."""
    if isinstance(error, ApiError):
        log.warning("%s is rescheduled: %s", subject, error, extra=names.SCHEDULE_DELAYED.extra)
    else:
        log.error(
            "%s failed; it is rescheduled",
            subject,
            exc_info=error,
            extra=names.SCHEDULE_FAILED.extra,
        )
