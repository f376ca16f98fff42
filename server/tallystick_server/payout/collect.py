"""Collect: the payouts of batches and schedules are made, page by page. One process does it for all; killed, another goes on where it was."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Row

from tallystick_core.batch import AFTER, BatchState, ItemState, NewBatch, made_payout_id, run_id
from tallystick_core.payable import Funds
from tallystick_core.payout import NewPayout
from tallystick_core.refusal import Reason, Refused
from tallystick_core.schedule import Schedule, next_time
from tallystick_server.payout.accept import Accept, Arrival, Judged, Result, Stored
from tallystick_server.payout.batches import insert, tell
from tallystick_server.payout.funds import Funding
from tallystick_server.payout.schedules import stored_schedule
from tallystick_server.runtime.errors import to_status
from tallystick_server.runtime.flow import Apart
from tallystick_server.runtime.peers import PeerRefused
from tallystick_server.runtime.stage import by_halves
from tallystick_server.runtime.telemetry import context_of
from tallystick_storage import duty
from tallystick_storage.database import Database
from tallystick_storage.payout import batch as store
from tallystick_storage.payout import schedule

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_AT_ONCE = 500
_MOST_PAGES = 10  # of wallets, most of which may have nothing to be paid, for one page of payouts
_MOST_BATCHES = 20
_TURN = 5.0  # seconds after which another process goes on; two at a time would do no harm
_MOST_IN_HAND = 4000  # payouts of this process that are under way, before more are made
_LOOK_AGAIN = 0.05
_OF_ALL = ""  # owners: a run of the platform pays the sellers of all of them


@dataclass(frozen=True, slots=True)
class _Page:
    """A part of a batch: its payouts, and where to go on; `last`: there is no more."""

    arrivals: Sequence[Arrival]
    place: str
    last: bool


class Collect:
    """Runs schedules whose cut-off has come, and collects batches.

    `holder` names this process, `in_hand` says how much it works on, `apart` runs work to its end though the turn is cancelled.
    """

    def __init__(self, database: Database, accept: Accept, funding: Funding, holder: UUID, in_hand: Callable[[], int], apart: Apart) -> None:
        self._database = database
        self._accept = accept
        self._funding = funding
        self._holder = holder
        self._in_hand = in_hand
        self._apart = apart
        self._looked_at = ""
        """The last open batch that was looked at: some stay open for days, and keep no other waiting."""

    async def turn(self) -> None:
        """Goes on with all that is to be collected, if it is this process's turn."""
        if not await self._database.transact(self._is_ours):
            return
        for default, cut_offs in await self._readable(
            await self._database.load(lambda connection: schedule.due(connection, _MOST_BATCHES, default=True))
        ):
            await self._begin(default, cut_offs)

        def look(connection: Connection) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]], Sequence[Row[Any]]]:
            sellers = schedule.due(connection, _MOST_AT_ONCE, default=False)
            return sellers, store.collecting(connection, _MOST_BATCHES), store.open_(connection, self._looked_at, _MOST_BATCHES)

        sellers, new, open_ = await self._database.load(look)
        try:
            while sellers and await self._pay_sellers(sellers) and len(sellers) == _MOST_AT_ONCE:
                sellers, new, open_ = await self._database.load(look)
        except (Refused, PeerRefused) as error:  # as while the wallet is away: batches may come on meanwhile
            log.warning("the schedules of %d sellers wait: %s", len(sellers), error)
        self._looked_at = open_[-1].payout_batch_id if len(open_) == _MOST_BATCHES else ""
        for row in (*new, *open_):
            try:
                await self._bring_on(row)
            except Exception as error:  # noqa: BLE001 - what is wrong with one batch keeps no other waiting; an alert tells of it
                _say(f"batch {row.payout_batch_id}", error)
                await self._put_off(row.payout_batch_id)

    async def _put_off(self, payout_batch_id: str) -> None:
        """Has a batch that cannot be collected looked at again later, so that it keeps no other waiting."""
        await self._database.transact(lambda connection: store.postpone(connection, payout_batch_id))

    async def _bring_on(self, row: Row[Any]) -> None:
        """Takes a batch as far as it comes now."""
        batch: Row[Any] | None = row
        while batch is not None and batch.state == BatchState.COLLECTING:
            batch = await self._collect(batch)
        if batch is not None and batch.state == BatchState.OPEN:
            await self._close(batch)

    def _is_ours(self, connection: Connection) -> bool:
        return duty.take_turn(connection, "collect", self._holder, _TURN)

    async def _begin(self, row: Row[Any], cut_offs: Schedule) -> None:
        """Makes a batch of a default schedule whose cut-off has come: one, also if it was missed for days."""

        def begin(connection: Connection) -> None:
            if self._is_ours(connection) and schedule.advance(connection, [(row, next_time(cut_offs, schedule.now(connection)))]):
                new = NewBatch(run_id(row.currency, row.next_time), row.caller, _OF_ALL, currency=row.currency)
                insert(connection, new, row.traceparent, row.next_time)

        try:
            await self._database.transact(begin)
        except Exception as error:  # noqa: BLE001 - what is wrong with one schedule keeps no other waiting; an alert tells of it
            _say(f"the run of all sellers in {row.currency}", error)
            await self._postpone([row])

    async def _readable(self, rows: Sequence[Row[Any]]) -> list[tuple[Row[Any], Schedule]]:
        """Schedules with their cut-offs. What cannot be read here, such as an unknown time zone, is looked at again later; an alert tells of it."""
        found, unreadable = [], []
        for row in rows:
            try:
                found.append((row, stored_schedule(row)))
            except Exception as error:  # noqa: BLE001 - what is wrong with one schedule keeps no other waiting
                _say(f"the schedule of {row.seller_account or 'all'} in {row.currency}", error)
                unreadable.append(row)
        await self._postpone(unreadable)
        return found

    async def _postpone(self, rows: Sequence[Row[Any]]) -> None:
        """Has schedules that cannot be run looked at again later, so that they keep no other waiting."""
        if rows:
            await self._database.transact(lambda connection: schedule.postpone(connection, rows))

    async def _pay_sellers(self, rows: Sequence[Row[Any]]) -> bool:
        """Makes the payouts of sellers with schedules of their own whose cut-off has come; whether any was ours to do."""
        await self._room()
        readable = await self._readable(rows)
        try:
            paid = await by_halves(self._pay, readable)
        except (Refused, PeerRefused):  # of all
            raise
        except Exception:
            log.exception("the payouts of %d schedules cannot be made together; each is made alone", len(readable))
            paid = await self._pay_each(readable)
        for (row, _), refused in zip(readable, paid, strict=True):
            if isinstance(refused, Exception):
                _say(f"the schedule of {row.seller_account} in {row.currency}", refused)
        await self._postpone([row for (row, _), one in zip(readable, paid, strict=True) if isinstance(one, Exception)])
        return any(one is True for one in paid)

    async def _pay_each(self, due: Sequence[tuple[Row[Any], Schedule]]) -> Sequence[bool | Exception]:
        """Makes the payouts one by one, so that whatever is wrong with one keeps no other waiting."""
        paid: list[bool | Exception] = []
        for one in due:
            try:
                paid += await self._pay([one])
            except Exception as error:  # noqa: BLE001 - it is said by who asked
                paid.append(error)
        return paid

    async def _pay(self, due: Sequence[tuple[Row[Any], Schedule]]) -> Sequence[bool | Exception]:
        arrivals = [_arrival(row, run_id(row.currency, row.next_time), _OF_ALL, row.seller_account, None, "") for row, _ in due]

        def pay(connection: Connection, judged: Judged, deadline: float) -> tuple[Stored, set[tuple[str, str]]]:
            now = schedule.now(connection)
            standing = schedule.advance(connection, [(row, next_time(cut_offs, now)) for row, cut_offs in due])
            moved = {arrival.payout.payout_id for arrival in arrivals if arrival.key not in standing}  # set meanwhile: these are looked at again
            return self._accept.insert(connection, judged.without(moved), deadline), standing

        standing = await self._make(arrivals, pay) or set()
        return [arrival.key in standing for arrival in arrivals]

    async def _collect(self, row: Row[Any]) -> Row[Any] | None:
        """Makes the next payouts of a batch; the batch as it stands, None: another process goes on with it."""
        await self._room()
        page = await self._page(row)
        is_default = row.is_run and not row.seller_account

        def collect(connection: Connection, judged: Judged, deadline: float) -> tuple[Stored, bool]:
            locked = store.lock(connection, row.payout_batch_id)
            if (locked.state, locked.place, locked.collected_count) != (row.state, row.place, row.collected_count):
                return Stored(), False
            stored = self._accept.insert(connection, judged, deadline)
            results = judged.results | stored.results
            kept = [one for one in page.arrivals if not (is_default and _has_too_little(results[one.payout.payout_id]))]
            items = [_item(row.payout_batch_id, arrival, results[arrival.payout.payout_id]) for arrival in kept]
            store.collected(connection, row.payout_batch_id, items, len(page.arrivals) - len(kept), page.place)
            if page.last:
                _move(connection, row)
            return stored, True

        if not await self._make(page.arrivals, collect):
            return None
        return await self._database.load(lambda connection: store.find(connection, row.payout_batch_id))

    async def _page(self, row: Row[Any]) -> _Page:
        """What a batch is to pay next."""
        if not row.is_run:
            asked = await self._database.load(lambda connection: store.asked(connection, row.payout_batch_id, _MOST_AT_ONCE))
            arrivals = [_asked(row, one) for one in asked]
            return _Page(arrivals, "", last=len(asked) < _MOST_AT_ONCE)
        if row.seller_account:
            return _Page([_arrival(row, row.payout_batch_id, row.owner, row.seller_account, None, row.payout_batch_id)], "", last=True)
        funds, place = await self._funds(row.currency, row.place)
        sellers = sorted(funds)
        own = await self._database.load(lambda connection: schedule.with_own(connection, sellers, row.currency))
        payable = [seller for seller in sellers if seller not in own]
        arrivals = [_arrival(row, row.payout_batch_id, row.owner, seller, funds[seller], row.payout_batch_id) for seller in payable]
        return _Page(arrivals, place, last=not place)

    async def _funds(self, currency: str, place: str) -> tuple[dict[str, Funds], str]:
        """The next sellers who have something to be paid, and where to go on; "": that was all."""
        found: dict[str, Funds] = {}
        for _ in range(_MOST_PAGES):
            page = await self._funding.page(currency, place)
            found |= {seller: funds for seller, funds in page.funds.items() if funds.available > 0}
            place = page.place
            if not place or len(found) >= _MOST_AT_ONCE:
                break
        return found, place

    async def _make(self, arrivals: Sequence[Arrival], make: Callable[[Connection, Judged, float], tuple[Stored, T]]) -> T | None:
        """Makes payouts as `make` stores them in a transaction, and returns what it says of it; None: it was not ours to do."""
        judged = await self._accept.judge(arrivals)
        deadline = self._accept.deadline()

        async def hand_over() -> T | None:
            made = await self._database.transact(lambda connection: make(connection, judged, deadline) if self._is_ours(connection) else None)
            if made is None:
                return None
            stored, result = made
            self._accept.hand_on(stored.payouts)
            return result

        return await self._apart(hand_over)

    async def _room(self) -> None:
        """Waits until this process has not too much in hand."""
        while self._in_hand() >= _MOST_IN_HAND:  # noqa: ASYNC110 - payouts come to rest by many ways
            await asyncio.sleep(_LOOK_AGAIN)

    async def _close(self, row: Row[Any]) -> None:
        """Ends a batch whose payouts have all come to rest."""

        def close(connection: Connection) -> None:
            if not store.is_under_way(connection, row.payout_batch_id):
                _move(connection, row)

        await self._database.transact(close)


def _say(what: str, error: Exception) -> None:
    """Logs why something waits; with a traceback unless it is a refusal that says all."""
    if isinstance(error, Refused):
        log.warning("%s waits: %s", what, error)
    else:
        log.error("%s does not come on", what, exc_info=error)


def _move(connection: Connection, row: Row[Any]) -> None:
    """Takes a batch into its next state, and tells of it, unless somebody else has."""
    moved = store.move(connection, row.payout_batch_id, row.state, AFTER[BatchState(row.state)])
    if moved is not None:
        tell(connection, moved)


def _arrival(row: Row[Any], run: str, owner: str, seller: str, funds: Funds | None, batch_id: str) -> Arrival:
    """Whatever can be paid to a seller, as a schedule or a batch of its run has it; `owner`: whose the seller must be, "": anybody's."""
    payout = NewPayout(made_payout_id(run, seller), row.caller, owner, seller, None, row.currency)
    return Arrival(payout, row.traceparent, context_of(row.traceparent), funds, batch_id)


def _asked(row: Row[Any], one: Row[Any]) -> Arrival:
    payout = NewPayout(one.payout_id, row.caller, row.owner, one.seller_account, one.amount, one.currency, one.payout_destination_id)
    return Arrival(payout, row.traceparent, context_of(row.traceparent), None, row.payout_batch_id)


def _has_too_little(result: Result) -> bool:
    """Whether a seller only has too little to be paid, such as less than the minimum. A run of all sellers counts those, without a row for each."""
    return isinstance(result, Refused) and result.reason is Reason.INSUFFICIENT_FUNDS


def _item(batch_id: str, arrival: Arrival, result: Result) -> store.Item:
    payout = arrival.payout
    refusal = to_status(result).SerializeToString().hex() if isinstance(result, Refused) else None
    state = ItemState.MADE if refusal is None else ItemState.REFUSED
    return store.Item(batch_id, payout.payout_id, payout.seller_account, payout.amount, payout.currency, payout.payout_destination_id, state, refusal)
