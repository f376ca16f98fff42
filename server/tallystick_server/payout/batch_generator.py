"""The payout batch generator: creates the payouts of batches, one page per transaction.

One process at a time runs it. After a crash, another resumes at the stored cursor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.payout.batch import NEXT_STATE, BatchState, ItemState
from tallystick_core.payout.quote import WalletBalance
from tallystick_core.payout.request import NewPayout
from tallystick_server.observability.tracing import parse_traceparent
from tallystick_server.payout.create_batch import emit_batch_changed
from tallystick_server.payout.create_payout import (
    CreatedPayouts,
    CreatePayoutCommand,
    CreatePayoutOutcome,
    PayoutCreationPlan,
    PayoutCreator,
)
from tallystick_server.payout.page_creator import PayoutPageCreator, build_seller_command
from tallystick_server.payout.schedule_runner import ScheduleRunner, log_rescheduled
from tallystick_server.payout.wallet_reader import WalletReader
from tallystick_server.rpc.errors import to_status
from tallystick_storage.database import Database
from tallystick_storage.payout import batches as store
from tallystick_storage.payout import schedules as schedule_store
from tallystick_storage.sql import Connection

_MAX_PAGE_SIZE = 500
_MAX_PAGES = 10  # wallet pages read for one page of payouts; most wallets may have no funds
MAX_BATCHES = 20


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

    `page_creator`: decides whether this process is the leader.
    """

    def __init__(
        self,
        database: Database,
        creator: PayoutCreator,
        wallet_reader: WalletReader,
        page_creator: PayoutPageCreator,
        schedule_runner: ScheduleRunner,
    ) -> None:
        self._database = database
        self._creator = creator
        self._wallet_reader = wallet_reader
        self._page_creator = page_creator
        self._schedule_runner = schedule_runner
        self._last_open_batch_id = ""
        """The open batch that was checked last. Some batches stay open for days and must not block
        the others.
        """

    async def run_once(self) -> None:
        """Advances all batches and schedules that are due, if this process is the leader."""
        if not await self._database.transact(self._page_creator.try_acquire_leadership):
            return
        await self._schedule_runner.run_due()
        for batch in await self._load_due_batches():
            try:
                await self._advance(batch)
            except Exception as error:  # noqa: BLE001 - one batch must not block the others
                log_rescheduled(f"batch {batch.payout_batch_id}", error)
                await self._reschedule(batch.payout_batch_id)

    async def _load_due_batches(self) -> Sequence[store.BatchRow]:
        """Batches that are due to be generated, and the next open ones."""

        def load(
            connection: Connection,
        ) -> tuple[Sequence[store.BatchRow], Sequence[store.BatchRow]]:
            return (
                store.list_generating(connection, MAX_BATCHES),
                store.list_open(connection, self._last_open_batch_id, MAX_BATCHES),
            )

        new, open_ = await self._database.load(load)
        self._last_open_batch_id = open_[-1].payout_batch_id if len(open_) == MAX_BATCHES else ""
        return (*new, *open_)

    async def _advance(self, row: store.BatchRow) -> None:
        """Advances a batch as far as possible now."""
        batch: store.BatchRow | None = row
        while batch is not None and batch.state == BatchState.GENERATING:
            batch = await self._generate(batch)
        if batch is not None and batch.state == BatchState.OPEN:
            await self._finish(batch)

    async def _generate(self, batch: store.BatchRow) -> store.BatchRow | None:
        """Creates the next payouts of a batch.

        Returns the updated batch, or None if another process has taken over.
        """
        await self._page_creator.wait_for_capacity()
        page = await self._next_page(batch)

        def generate(
            connection: Connection, plan: PayoutCreationPlan, lease_deadline: float
        ) -> tuple[CreatedPayouts, bool]:
            if not _is_unchanged(batch, store.lock(connection, batch.payout_batch_id)):
                return CreatedPayouts(), False
            created_payouts = self._creator.insert(connection, plan, lease_deadline)
            _record_page(connection, batch, page, plan.results | created_payouts.results)
            if page.is_last:
                _transition(connection, batch)
            return created_payouts, True

        if not await self._page_creator.create(page.commands, generate):
            return None
        return await self._database.load(
            lambda connection: store.find(connection, batch.payout_batch_id)
        )

    async def _next_page(self, batch: store.BatchRow) -> _CommandPage:
        """The next page of payouts of a batch."""
        if not batch.is_run:
            return await self._next_requested_page(batch)
        if batch.seller_account:
            command = _build_run_command(batch, batch.seller_account, None)
            return _CommandPage([command], "", is_last=True)
        return await self._next_run_page(batch)

    async def _next_requested_page(self, batch: store.BatchRow) -> _CommandPage:
        """The next payouts of a list."""
        items = await self._database.load(
            lambda connection: store.list_requested(
                connection, batch.payout_batch_id, _MAX_PAGE_SIZE
            )
        )
        commands = [_build_item_command(batch, item) for item in items]
        return _CommandPage(commands, "", is_last=len(items) < _MAX_PAGE_SIZE)

    async def _next_run_page(self, batch: store.BatchRow) -> _CommandPage:
        """The next payouts of a run of all sellers, except those with a schedule of their own."""
        balances, cursor = await self._next_balances(batch.currency, batch.cursor)
        sellers = sorted(balances)
        sellers_with_schedule = await self._database.load(
            lambda connection: schedule_store.find_sellers_with_schedule(
                connection, sellers, batch.currency
            )
        )
        commands = [
            _build_run_command(batch, seller, balances[seller])
            for seller in sellers
            if seller not in sellers_with_schedule
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

    async def _finish(self, batch: store.BatchRow) -> None:
        """Completes a batch whose payouts are all final."""

        def finish(connection: Connection) -> None:
            if not store.is_in_progress(connection, batch.payout_batch_id):
                _transition(connection, batch)

        await self._database.transact(finish)

    async def _reschedule(self, payout_batch_id: str) -> None:
        """Reschedules a batch that cannot be generated, so that it does not block the others."""
        await self._database.transact(
            lambda connection: store.reschedule(connection, payout_batch_id)
        )


def _is_unchanged(read: store.BatchRow, locked: store.BatchRow) -> bool:
    """Whether no other process has generated payouts of the batch since it was read."""
    return (locked.state, locked.cursor, locked.generated_count) == (
        read.state,
        read.cursor,
        read.generated_count,
    )


def _record_page(
    connection: Connection,
    batch: store.BatchRow,
    page: _CommandPage,
    results: Mapping[str, CreatePayoutOutcome],
) -> None:
    """Stores the report lines of a page and the cursor of the next one."""
    is_default = batch.is_run and not batch.seller_account
    items = []
    for command in page.commands:
        result = results[command.payout.payout_id]
        if not (is_default and _has_insufficient_funds(result)):
            items.append(_to_batch_item(batch.payout_batch_id, command, result))
    store.record_generated(
        connection, batch.payout_batch_id, items, len(page.commands) - len(items), page.cursor
    )


def _transition(connection: Connection, row: store.BatchRow) -> None:
    """Moves a batch to its next state and records the event, unless another process has done so."""
    state = BatchState(row.state)
    updated_row = store.transition(connection, row.payout_batch_id, state, NEXT_STATE[state])
    if updated_row is not None:
        emit_batch_changed(connection, updated_row)


def _build_run_command(
    batch: store.BatchRow, seller: str, balance: WalletBalance | None
) -> CreatePayoutCommand:
    return build_seller_command(
        batch,
        seller,
        run_id=batch.payout_batch_id,
        batch_id=batch.payout_batch_id,
        owner=batch.owner,
        balance=balance,
    )


def _build_item_command(batch: store.BatchRow, item: store.RequestedItemRow) -> CreatePayoutCommand:
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
