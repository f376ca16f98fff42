"""Record: what providers said of payouts, judged and written down in one transaction for each batch.

Every answer ends here, from whatever side it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.payable import DestinationHappening, account_refused
from tallystick_core.payout import HAPPENINGS, Cause, Happening, payout_demand
from tallystick_core.provider import Declined, InTransit, PayoutOutcome, Returned, Submitted, Succeeded
from tallystick_core.recovery import MOST_OPEN_REPORTS
from tallystick_core.transfer import Known, Transfer, Verdict, cause_of, judge
from tallystick_server.payout.destination import end_destinations
from tallystick_server.payout.move import Move, move_payouts
from tallystick_server.payout.payout import Payout
from tallystick_server.payout.standing import Turn, transfer_of
from tallystick_server.runtime.dead_letters import go_on
from tallystick_server.runtime.demand import Answered, to_store
from tallystick_server.runtime.stage import by_halves
from tallystick_storage import due
from tallystick_storage.database import Database
from tallystick_storage.payout import acknowledgement
from tallystick_storage.payout import payouts as store
from tallystick_storage.payout import transfer as transfers
from tallystick_storage.payout.acknowledgement import NewReport

_CAUSES = {Happening.STRAY: Cause.STRAY_TRANSFER}
_LONGEST_REPORT = 255
_ANOTHERS = ", which is the transfer of another payout"


class Record:
    """The record stage's work. An answer is a fact: it is judged by what is on disk, locked, and counts whoever brings it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, items: Sequence[Answered[Payout, PayoutOutcome]]) -> Sequence[Payout | Exception]:
        """Each payout as it stands after the answers."""
        return await by_halves(self._record, items)

    async def _record(self, items: Sequence[Answered[Payout, PayoutOutcome]]) -> Sequence[Payout | Exception]:
        ids = sorted({item.item.payout_id for item in items})
        refused = sorted({item.item.payout_destination_id for item in items if account_refused(item.outcome)})

        def record(connection: Connection) -> dict[str, Payout]:
            due.record_answers(connection, [to_store(item.item, HAPPENINGS[type(item.outcome)], item.outcome) for item in items])
            if refused:  # attempts are locked before what is due, as everywhere
                end_destinations(connection, refused, DestinationHappening.ACCOUNT_REFUSED, others=[payout_demand(id_) for id_ in ids])
            rows = store.lock(connection, ids)
            known = transfers.of(connection, ids)
            books = {item.item.payout_id: _Book(item.item, rows[item.item.payout_id], known.get(item.item.payout_id, ())) for item in items}
            for item in items:
                books[item.item.payout_id].take(item.outcome)
            return _write(connection, list(books.values()))

        stand = await self._database.transact(record)
        return [_as(item.item, stand[item.item.payout_id]) for item in items]

    async def note_anothers(self, item: Payout, outcome: PayoutOutcome) -> None:
        """Stores for an operator that the provider reports another payout's transfer of a payout at rest. It moves no money."""

        def note(connection: Connection) -> None:
            rows = store.lock(connection, [item.payout_id])
            book = _Book(item, rows[item.payout_id], transfers.of(connection, [item.payout_id]).get(item.payout_id, ()))
            book.conflicts.append(f"{_report(outcome)}{_ANOTHERS}"[:_LONGEST_REPORT])
            _write(connection, [book])

        await self._database.transact(note)


def _as(item: Payout, now: Payout) -> Payout:
    """A payout in hand, under the lease it is held by, as it stands now."""
    return replace(item, standing=now.standing, message=now.message, tries=now.tries)


class _Book:
    """One payout under its lock, with all that the batch tells of it, in order."""

    def __init__(self, item: Payout, row: Row[Any], known: Sequence[Row[Any]]) -> None:
        self.item = item if item.standing.version == row.version else item.as_stored(row)  # mostly nobody has moved it meanwhile
        self.rested = row.settled
        self.turns: list[Turn] = []
        self.told: dict[str, Transfer] = {}
        self.conflicts: list[str] = []
        """What the provider reports otherwise than before."""
        self.heard = False
        """Whether something definite was said, so that what was set aside goes on."""
        self._standing = self.item.standing
        self._transfers = {one.provider_reference: transfer_of(one) for one in known}

    def take(self, outcome: PayoutOutcome) -> None:
        """What an answer makes of it."""
        known = Known(self._standing.state, self.item.net_amount, self.item.currency, self._transfers)
        verdict = judge(known, outcome)
        self._transfers |= {one.reference: one for one in verdict.transfers}
        self.told |= {one.reference: one for one in verdict.transfers}
        self.heard = self.heard or isinstance(outcome, Submitted | InTransit | Succeeded | Returned | Declined)
        for happening in verdict.happenings:
            self._turn(happening, outcome, verdict)
        if verdict.contradicted:
            self.conflicts.append(_report(outcome))

    def _turn(self, happening: Happening, outcome: PayoutOutcome, verdict: Verdict) -> None:
        before = self._standing
        after = before.after(happening, **self._changes(happening, outcome, verdict))
        if happening is not Happening.STRAY and after.state is before.state:
            return  # the same again
        self._standing = after
        self.turns.append(Turn(after, _CAUSES.get(happening, Cause.PROVIDER_ANSWER)))

    def _changes(self, happening: Happening, outcome: PayoutOutcome, verdict: Verdict) -> dict[str, Any]:
        """What an answer says of the payout beside its state."""
        changes: dict[str, Any] = {}
        if reference := getattr(outcome, "reference", ""):
            changes["provider_reference"] = self._standing.provider_reference or reference
        if code := getattr(outcome, "code", ""):
            changes["decline_code"] = code
        if happening is Happening.DECLINED:
            changes["failure_reason"] = verdict.failure
        ours = [one for one in self._transfers.values() if one.currency == self.item.currency]
        changes["paid_amount"] = sum(one.amount for one in ours)
        if happening in (Happening.RETURNED, Happening.STRAY):
            changes["returned_amount"] = sum(one.returned_amount or 0 for one in ours if one.returned_currency == self.item.currency)
        return changes

    def new_reports(self, known: Sequence[Row[Any]]) -> list[NewReport]:
        """The conflicting reports that are news, each a version of the payout; where the money is stays as it was reported first.

        What is open, or was reported last, is no news: a provider that goes on saying it raises no second alert. What it says again after something
        else is, though it was acknowledged before.
        """
        open_ = {row.report for row in known if not row.acknowledged_by}
        last = known[-1].report if known else ""
        reports: list[str] = []
        for one in self.conflicts:
            if one != last and one not in open_ and len(open_) < MOST_OPEN_REPORTS:
                reports.append(one)
                open_.add(one)
                last = one
        for _ in reports:
            self._standing = self._standing.after(Happening.STRAY)
            self.turns.append(Turn(self._standing, Cause.STRAY_TRANSFER))
        return [NewReport(self.item.payout_id, number, one) for number, one in enumerate(reports, len(known) + 1)]


def _report(outcome: PayoutOutcome) -> str:
    """What is reported, in a line: the same for the same."""
    said = (str(getattr(outcome, name, "")) for name in ("reference", "amount", "currency", "code"))
    return " ".join([type(outcome).__name__, *filter(None, said)])[:_LONGEST_REPORT]


def _note_conflicts(connection: Connection, books: Sequence[_Book]) -> None:
    """Stores for an operator what conflicts with earlier reports, and was not reported before."""
    conflicting = [book for book in books if book.conflicts]
    if not conflicting:
        return
    known = acknowledgement.reports(connection, [book.item.payout_id for book in conflicting])
    new = [report for book in conflicting for report in book.new_reports(known.get(book.item.payout_id, ()))]
    if new:
        acknowledgement.report(connection, new)


def _write(connection: Connection, books: Sequence[_Book]) -> dict[str, Payout]:
    """Writes all of it down; the payouts as they stand."""
    _note_conflicts(connection, books)
    told = [_told(book.item, one) for book in books for one in book.told.values()]
    if told:
        transfers.tell(connection, told)
    reopened = [book.item.payout_id for book in books if book.rested and book.turns]
    if reopened:
        store.reopen(connection, reopened)
    moves = [Move(book.item, tuple(book.turns), fact=True) for book in books if book.turns]
    moved = move_payouts(connection, moves)
    if len(moved) < len(moves):
        raise RuntimeError("a fact about a locked payout was not written down")
    go_on(connection, [book.item for book in books if book.heard])
    return {book.item.payout_id: moved.get(book.item.payout_id, book.item) for book in books}


def _told(item: Payout, one: Transfer) -> transfers.ToldTransfer:
    return transfers.ToldTransfer(
        provider=item.provider,
        provider_reference=one.reference,
        payout_id=item.payout_id,
        fit=one.fit,
        cause_id=cause_of(item.payout_id, item.provider, one),
        amount=one.amount,
        currency=one.currency,
        returned_amount=one.returned_amount,
        returned_currency=one.returned_currency,
    )
