"""The payout batch generator: creates the payouts of batches and schedules, one page per
transaction.

One process at a time runs it. After a crash, another resumes at the stored cursor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Row

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.payout.batch import (
    NEXT_STATE,
    BatchState,
    ItemState,
    NewBatch,
    derive_payout_id,
    format_run_id,
)
from tallystick_core.payout.quote import WalletBalance
from tallystick_core.payout.request import NewPayout
from tallystick_core.payout.schedule import Schedule, next_time
from tallystick_server.observability.tracing import parse_traceparent
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.tasks import DetachedRunner
from tallystick_server.payout.create_batch import emit_batch_changed, insert_batch
from tallystick_server.payout.create_payout import (
    CreatedPayouts,
    CreatePayoutCommand,
    CreatePayoutOutcome,
    PayoutCreationPlan,
    PayoutCreator,
)
from tallystick_server.payout.schedules import schedule_from_row
from tallystick_server.payout.wallet_reader import WalletReader
from tallystick_server.rpc.errors import to_status
from tallystick_server.rpc.service_client import ServiceCallRejected
from tallystick_storage import clock, leader_lease
from tallystick_storage.database import Database
from tallystick_storage.payout import batches as store
from tallystick_storage.payout import schedules as schedule_store

log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_PAGE_SIZE = 500
_MAX_PAGES = 10  # wallet pages read for one page of payouts; most wallets may have no funds
_MAX_BATCHES = 20
# Seconds after which another process takes over; two at a time would do no harm.
_LEADER_LEASE_SECONDS = 5.0
_MAX_IN_FLIGHT = 4000  # payouts in flight in this process, above which it creates no more
_POLL_SECONDS = 0.05
_ANY_OWNER = ""  # owner filter: a platform run pays the sellers of all owners


@dataclass(frozen=True, slots=True)
class _CommandPage:
    """One page of a batch: its payouts, and the cursor of the next page. `is_last`: no page
    follows.
    """

    commands: Sequence[CreatePayoutCommand]
    cursor: str
    is_last: bool


class BatchGenerator:
    """Runs schedules whose cut-off has passed, and generates the payouts of batches.

    `holder_id`: identifies this process. `in_flight_count`: its current number of operations.
    `run_detached`: runs work to its end even if the calling task is cancelled.
    """

    def __init__(
        self,
        database: Database,
        creator: PayoutCreator,
        wallet_reader: WalletReader,
        holder_id: UUID,
        in_flight_count: Callable[[], int],
        run_detached: DetachedRunner,
    ) -> None:
        self._database = database
        self._creator = creator
        self._wallet_reader = wallet_reader
        self._holder_id = holder_id
        self._in_flight_count = in_flight_count
        self._run_detached = run_detached
        self._last_open_batch_id = ""
        """The open batch that was checked last. Some batches stay open for days and must not block
        the others.
        """

    async def run_once(self) -> None:
        """Advances all batches and schedules that are due, if this process is the leader."""
        if not await self._database.transact(self._is_leader):
            return
        for default, cut_offs in await self._parse_schedules(
            await self._database.load(
                lambda connection: schedule_store.list_due(
                    connection, _MAX_BATCHES, defaults_only=True
                )
            )
        ):
            await self._start_run(default, cut_offs)

        def load(
            connection: Connection,
        ) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]], Sequence[Row[Any]]]:
            sellers = schedule_store.list_due(connection, _MAX_PAGE_SIZE, defaults_only=False)
            return (
                sellers,
                store.list_generating(connection, _MAX_BATCHES),
                store.list_open(connection, self._last_open_batch_id, _MAX_BATCHES),
            )

        sellers, new, open_ = await self._database.load(load)
        try:
            while sellers and await self._pay_sellers(sellers) and len(sellers) == _MAX_PAGE_SIZE:
                sellers, new, open_ = await self._database.load(load)
        except (
            ApiError,
            ServiceCallRejected,
        ) as error:  # such as an unavailable wallet; batches may still advance
            log.warning("the schedules of %d sellers are delayed: %s", len(sellers), error)
        self._last_open_batch_id = open_[-1].payout_batch_id if len(open_) == _MAX_BATCHES else ""
        for row in (*new, *open_):
            try:
                await self._advance(row)
            # an error of one batch must not delay the others; an alert reports it
            except Exception as error:  # noqa: BLE001
                _log_failure(f"batch {row.payout_batch_id}", error)
                await self._reschedule_batch(row.payout_batch_id)

    async def _reschedule_batch(self, payout_batch_id: str) -> None:
        """Reschedules a batch that cannot be generated, so that it does not block the others."""
        await self._database.transact(
            lambda connection: store.reschedule(connection, payout_batch_id)
        )

    async def _advance(self, row: Row[Any]) -> None:
        """Advances a batch as far as possible now."""
        batch: Row[Any] | None = row
        while batch is not None and batch.state == BatchState.GENERATING:
            batch = await self._generate(batch)
        if batch is not None and batch.state == BatchState.OPEN:
            await self._finish(batch)

    def _is_leader(self, connection: Connection) -> bool:
        return leader_lease.try_acquire_lease(
            connection, "generate_batches", self._holder_id, _LEADER_LEASE_SECONDS
        )

    async def _start_run(self, row: Row[Any], cut_offs: Schedule) -> None:
        """Creates the batch of a default schedule whose cut-off has passed.

        Only one batch is created, even if cut-offs of several days were missed.
        """

        def start(connection: Connection) -> None:
            if self._is_leader(connection) and schedule_store.advance(
                connection, [(row, next_time(cut_offs, clock.now(connection)))]
            ):
                new = NewBatch(
                    format_run_id(row.currency, row.next_time),
                    row.caller,
                    _ANY_OWNER,
                    currency=row.currency,
                )
                insert_batch(connection, new, row.traceparent, row.next_time)

        try:
            await self._database.transact(start)
        # an error of one schedule must not delay the others; an alert reports it
        except Exception as error:  # noqa: BLE001
            _log_failure(f"the run of all sellers in {row.currency}", error)
            await self._reschedule_schedules([row])

    async def _parse_schedules(self, rows: Sequence[Row[Any]]) -> list[tuple[Row[Any], Schedule]]:
        """Schedules with their cut-offs.

        A schedule that cannot be parsed, such as one with an unknown time zone, is rescheduled and
        raises an alert.
        """
        schedules, invalid_rows = [], []
        for row in rows:
            try:
                schedules.append((row, schedule_from_row(row)))
            # an error of one schedule must not delay the others
            except Exception as error:  # noqa: BLE001
                _log_failure(
                    f"the schedule of {row.seller_account or 'all'} in {row.currency}", error
                )
                invalid_rows.append(row)
        await self._reschedule_schedules(invalid_rows)
        return schedules

    async def _reschedule_schedules(self, rows: Sequence[Row[Any]]) -> None:
        """Reschedules schedules that cannot be run, so that they do not block the others."""
        if rows:
            await self._database.transact(
                lambda connection: schedule_store.reschedule(connection, rows)
            )

    async def _pay_sellers(self, rows: Sequence[Row[Any]]) -> bool:
        """Creates the payouts of sellers with their own schedule whose cut-off has passed.

        Returns whether this process created any.
        """
        await self._wait_for_capacity()
        schedules = await self._parse_schedules(rows)
        try:
            results = await bisect_on_error(self._pay, schedules)
        except (ApiError, ServiceCallRejected):  # for the whole page
            raise
        except Exception:  # of one schedule, which must not block the others
            log.exception(
                "the payouts of %d schedules cannot be created together; each is created alone",
                len(schedules),
            )
            results = await self._pay_one_by_one(schedules)
        for (row, _), result in zip(schedules, results, strict=True):
            if isinstance(result, Exception):
                _log_failure(f"the schedule of {row.seller_account} in {row.currency}", result)
        await self._reschedule_schedules(
            [
                row
                for (row, _), result in zip(schedules, results, strict=True)
                if isinstance(result, Exception)
            ]
        )
        return any(result is True for result in results)

    async def _pay_one_by_one(
        self, schedules: Sequence[tuple[Row[Any], Schedule]]
    ) -> Sequence[bool | Exception]:
        """Creates the payouts one by one, so that a failure of one does not block the others."""
        results: list[bool | Exception] = []
        for entry in schedules:
            try:
                results += await self._pay([entry])
            except Exception as error:  # noqa: BLE001 - the caller logs it
                results.append(error)
        return results

    async def _pay(
        self, schedules: Sequence[tuple[Row[Any], Schedule]]
    ) -> Sequence[bool | Exception]:
        commands = [
            _build_seller_command(
                row,
                format_run_id(row.currency, row.next_time),
                _ANY_OWNER,
                row.seller_account,
                None,
                "",
            )
            for row, _ in schedules
        ]

        def pay(
            connection: Connection, plan: PayoutCreationPlan, lease_deadline: float
        ) -> tuple[CreatedPayouts, set[tuple[str, str]]]:
            now = clock.now(connection)
            advanced_keys = schedule_store.advance(
                connection, [(row, next_time(cut_offs, now)) for row, cut_offs in schedules]
            )
            skipped_ids = {
                command.payout.payout_id
                for command in commands
                if command.wallet_key not in advanced_keys
            }  # Changed concurrently: these schedules are read again.
            return self._creator.insert(
                connection, plan.excluding(skipped_ids), lease_deadline
            ), advanced_keys

        advanced_keys = await self._create_payouts(commands, pay) or set()
        return [command.wallet_key in advanced_keys for command in commands]

    async def _generate(self, row: Row[Any]) -> Row[Any] | None:
        """Creates the next payouts of a batch.

        Returns the updated batch, or None if another process has taken over.
        """
        await self._wait_for_capacity()
        page = await self._next_page(row)
        is_default = row.is_run and not row.seller_account

        def generate(
            connection: Connection, plan: PayoutCreationPlan, lease_deadline: float
        ) -> tuple[CreatedPayouts, bool]:
            batch = store.lock(connection, row.payout_batch_id)
            if (batch.state, batch.cursor, batch.generated_count) != (
                row.state,
                row.cursor,
                row.generated_count,
            ):
                return CreatedPayouts(), False
            created_payouts = self._creator.insert(connection, plan, lease_deadline)
            results = plan.results | created_payouts.results
            item_commands = [
                command
                for command in page.commands
                if not (is_default and _has_insufficient_funds(results[command.payout.payout_id]))
            ]
            items = [
                _to_batch_item(row.payout_batch_id, command, results[command.payout.payout_id])
                for command in item_commands
            ]
            store.record_generated(
                connection,
                row.payout_batch_id,
                items,
                len(page.commands) - len(item_commands),
                page.cursor,
            )
            if page.is_last:
                _transition(connection, row)
            return created_payouts, True

        if not await self._create_payouts(page.commands, generate):
            return None
        return await self._database.load(
            lambda connection: store.find(connection, row.payout_batch_id)
        )

    async def _next_page(self, row: Row[Any]) -> _CommandPage:
        """The next page of payouts of a batch."""
        if not row.is_run:
            requested_items = await self._database.load(
                lambda connection: store.list_requested(
                    connection, row.payout_batch_id, _MAX_PAGE_SIZE
                )
            )
            commands = [_build_item_command(row, item) for item in requested_items]
            return _CommandPage(commands, "", is_last=len(requested_items) < _MAX_PAGE_SIZE)
        if row.seller_account:
            return _CommandPage(
                [
                    _build_seller_command(
                        row,
                        row.payout_batch_id,
                        row.owner,
                        row.seller_account,
                        None,
                        row.payout_batch_id,
                    )
                ],
                "",
                is_last=True,
            )
        balances, cursor = await self._next_balances(row.currency, row.cursor)
        sellers = sorted(balances)
        sellers_with_schedule = await self._database.load(
            lambda connection: schedule_store.find_sellers_with_schedule(
                connection, sellers, row.currency
            )
        )
        payees = [seller for seller in sellers if seller not in sellers_with_schedule]
        commands = [
            _build_seller_command(
                row, row.payout_batch_id, row.owner, seller, balances[seller], row.payout_batch_id
            )
            for seller in payees
        ]
        return _CommandPage(commands, cursor, is_last=not cursor)

    async def _next_balances(
        self, currency: str, cursor: str
    ) -> tuple[dict[str, WalletBalance], str]:
        """The next sellers with available funds, and the cursor of the next page; "": this was the
        last.
        """
        balances: dict[str, WalletBalance] = {}
        for _ in range(_MAX_PAGES):
            page = await self._wallet_reader.read_page(currency, cursor)
            balances |= {
                seller: balance
                for seller, balance in page.balances.items()
                if balance.available > 0
            }
            cursor = page.cursor
            if not cursor or len(balances) >= _MAX_PAGE_SIZE:
                break
        return balances, cursor

    async def _create_payouts(
        self,
        commands: Sequence[CreatePayoutCommand],
        insert_payouts: Callable[[Connection, PayoutCreationPlan, float], tuple[CreatedPayouts, T]],
    ) -> T | None:
        """Creates payouts with `insert_payouts` in one transaction and returns its result.

        None: another process has taken over.
        """
        plan = await self._creator.plan_creation(commands)
        lease_deadline = self._creator.lease_deadline()

        async def commit_and_start() -> T | None:
            commit_result = await self._database.transact(
                lambda connection: (
                    insert_payouts(connection, plan, lease_deadline)
                    if self._is_leader(connection)
                    else None
                )
            )
            if commit_result is None:
                return None
            created_payouts, result = commit_result
            self._creator.start_operations(created_payouts.operations)
            return result

        return await self._run_detached(commit_and_start)

    async def _wait_for_capacity(self) -> None:
        """Waits until the number of payouts in flight is below the limit."""
        # payouts become final in many ways
        while self._in_flight_count() >= _MAX_IN_FLIGHT:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    async def _finish(self, row: Row[Any]) -> None:
        """Completes a batch whose payouts are all final."""

        def finish(connection: Connection) -> None:
            if not store.is_in_progress(connection, row.payout_batch_id):
                _transition(connection, row)

        await self._database.transact(finish)


def _log_failure(subject: str, error: Exception) -> None:
    """Logs why something waits; with a traceback unless the error is an expected rejection."""
    if isinstance(error, ApiError):
        log.warning("%s is rescheduled: %s", subject, error)
    else:
        log.error("%s failed; it is rescheduled", subject, exc_info=error)


def _transition(connection: Connection, row: Row[Any]) -> None:
    """Moves a batch to its next state and records the event, unless another process has done so."""
    updated_row = store.transition(
        connection, row.payout_batch_id, row.state, NEXT_STATE[BatchState(row.state)]
    )
    if updated_row is not None:
        emit_batch_changed(connection, updated_row)


def _build_seller_command(
    row: Row[Any], run: str, owner: str, seller: str, balance: WalletBalance | None, batch_id: str
) -> CreatePayoutCommand:
    """The payout of all available funds of a seller, for a schedule or a batch of its run.

    `owner`: the required owner of the seller; "": any.
    """
    payout = NewPayout(derive_payout_id(run, seller), row.caller, owner, seller, None, row.currency)
    return CreatePayoutCommand(
        payout, row.traceparent, parse_traceparent(row.traceparent), balance, batch_id
    )


def _build_item_command(batch: Row[Any], item: Row[Any]) -> CreatePayoutCommand:
    payout = NewPayout(
        item.payout_id,
        batch.caller,
        batch.owner,
        item.seller_account,
        item.amount,
        item.currency,
        item.payout_destination_id,
    )
    return CreatePayoutCommand(
        payout, batch.traceparent, parse_traceparent(batch.traceparent), None, batch.payout_batch_id
    )


def _has_insufficient_funds(result: CreatePayoutOutcome) -> bool:
    """Whether only the seller's funds are insufficient, such as less than the minimum.

    A run of all sellers counts these without storing a row for each.
    """
    return isinstance(result, ApiError) and result.reason is ErrorReason.INSUFFICIENT_FUNDS


def _to_batch_item(
    batch_id: str, command: CreatePayoutCommand, result: CreatePayoutOutcome
) -> store.BatchItemRow:
    payout = command.payout
    serialized_error = (
        to_status(result).SerializeToString().hex() if isinstance(result, ApiError) else None
    )
    state = ItemState.CREATED if serialized_error is None else ItemState.REJECTED
    return store.BatchItemRow(
        batch_id,
        payout.payout_id,
        payout.seller_account,
        payout.amount,
        payout.currency,
        payout.payout_destination_id,
        state,
        serialized_error,
    )
