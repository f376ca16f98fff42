"""What operators do in every service that makes demands: its dead letters and its alerts."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Row

from tallystick.recovery.v1 import recovery_pb2
from tallystick_core.caller import Role
from tallystick_core.dead_letter import DeadLetterState
from tallystick_core.identifier import parse_id, parse_words
from tallystick_core.provider import Answer, Declined, NotFound, NotSent, Returned, Succeeded, Trouble, Unknown, Verified
from tallystick_core.recovery import Step
from tallystick_core.refusal import Reason, Refused, not_found
from tallystick_core.table import Verb, forbidden
from tallystick_server.runtime import alerts, dead_letters
from tallystick_server.runtime.alerts import AlertHandlers
from tallystick_server.runtime.demand import InHand
from tallystick_server.runtime.door import Access, Call
from tallystick_server.runtime.execute import HeldBack
from tallystick_server.runtime.fields import PageToken, page_size, parse_time, parse_token_time
from tallystick_server.runtime.flow import Flow, is_anothers_money
from tallystick_server.runtime.retry import DEFAULTS
from tallystick_storage import dead_letter, due
from tallystick_storage.database import Database, DataRefused

H = TypeVar("H", bound=InHand)
G = TypeVar("G")
Place = tuple[datetime, str] | None
"""The (create_time, id) of a dead letter that others come after; None: the first comes next."""

_OPERATOR = frozenset({Role.OPERATOR})
ACCESS: Access = {
    "ListDeadLetters": _OPERATOR,
    "GetDeadLetter": _OPERATOR,
    "RetryDeadLetter": _OPERATOR,
    "CloseDeadLetter": _OPERATOR,
    "RetryDeadLetters": _OPERATOR,
    "CloseDeadLetters": _OPERATOR,
    **alerts.ACCESS,
}
_RETRY, _CLOSE = Verb("RETRY", "retried"), Verb("CLOSE", "closed")
_ASK_AGAIN = 1.0  # seconds
_MOST_RETRIED = 500
_MOST_CLOSED = 20
_CLOSED_AT_ONCE = 5  # each of them asks its provider
_SAMPLE = 20
_DEAD_LETTER_ID = re.compile(r"\A[A-Za-z0-9_-]{1,100}\Z", re.ASCII)


class DeadLetters(Generic[H, G]):
    """What an operator may do with them. Nothing leaves by itself but by an outcome that comes after all."""

    def __init__(self, database: Database, flow: Flow[H, G]) -> None:
        self._database = database
        self._flow = flow

    def demand_id(self, row: Row[Any]) -> str:
        return self._flow.demand_id(row.subject)

    async def find(self, dead_letter_id: str, *, changed: bool = False) -> Row[Any]:
        """The dead letter; `changed` as in `Database.read`. Raises NOT_FOUND."""
        found = await self._database.read(lambda connection: dead_letter.find(connection, dead_letter_id), changed=changed)
        if found is None:
            raise not_found("dead letter", dead_letter_id)
        return found

    async def retry(self, dead_letter_id: str, operator: str, reason: str) -> tuple[Row[Any], bool]:
        """Has it tried again; it as it stands, and whether it was before. Raises NOT_FOUND, STATE_FORBIDS."""
        end = _End(DeadLetterState.RETRIED, operator, reason)
        row = await self.find(dead_letter_id)

        def retry(connection: Connection) -> None:
            due.lock(connection, [self.demand_id(row)])
            end.write(connection, row)
            due.revive(connection, [self.demand_id(row)])

        ours = False
        with suppress(_Overtaken):
            await self._database.transact(retry)
            ours = True
        return await self._ended(dead_letter_id, _RETRY, end), not ours

    async def retry_many(self, wanted: dead_letter.Filter, after: Place, operator: str, reason: str) -> tuple[Sequence[Row[Any]], set[str], bool]:
        """Has the next of those that a filter names tried again: those, the ids of those that were open still, and whether there are more."""
        end = _End(DeadLetterState.RETRIED, operator, reason)

        def retry(connection: Connection) -> tuple[Sequence[Row[Any]], set[str], bool]:
            found = dead_letter.open_after(connection, wanted, after, _MOST_RETRIED + 1)
            page = found[:_MOST_RETRIED]
            due.lock(connection, [self.demand_id(row) for row in page])
            ended = end.write_all(connection, page)
            due.revive(connection, [self.demand_id(row) for row in ended])
            return page, {row.dead_letter_id for row in ended}, len(found) > len(page)

        return await self._database.transact(retry)

    async def close_many(
        self, wanted: dead_letter.Filter, after: Place, operator: str, reason: str, evidence: str
    ) -> tuple[Sequence[Row[Any]], Sequence[Row[Any] | Refused], bool]:
        """Closes the next of those that a filter names, each as `close` does: those, what became of each, and whether there are more."""
        found = await self._database.read(lambda connection: dead_letter.open_after(connection, wanted, after, _MOST_CLOSED + 1))
        page = found[:_MOST_CLOSED]
        room = asyncio.Semaphore(_CLOSED_AT_ONCE)

        async def one(row: Row[Any]) -> Row[Any] | Refused:
            async with room:
                try:
                    return (await self.close(row.dead_letter_id, operator, reason, evidence, alone=False))[0]
                except Refused as refused:
                    return refused

        return page, await asyncio.gather(*(one(row) for row in page)), len(found) > len(page)

    async def look_over(self, wanted: dead_letter.Filter) -> tuple[Sequence[Row[Any]], list[str]]:
        """How many open ones a filter names, by cause and provider, and the ids of the first."""

        def look(connection: Connection) -> tuple[Sequence[Row[Any]], list[str]]:
            first = dead_letter.open_after(connection, wanted, None, _SAMPLE)
            return dead_letter.open_counts(connection, wanted), [row.dead_letter_id for row in first]

        return await self._database.read(look)

    async def now(self) -> datetime:
        """The database's time: what is made later is not meant by a call that begins now."""
        return await self._database.read(dead_letter.now)

    async def close(self, dead_letter_id: str, operator: str, reason: str, evidence: str, *, alone: bool = True) -> tuple[Row[Any], bool]:
        """Fails its demand, unless the provider knows better; it as it stands, and whether it was closed before. Raises NOT_FOUND, STATE_FORBIDS.

        `alone`: whether the evidence is about this dead letter alone. Only then is it closed while its provider answers with another one's money.
        """
        end = _End(DeadLetterState.CLOSED, operator, reason, evidence)
        row = await self.find(dead_letter_id)
        if row.state != DeadLetterState.OPEN:  # its provider need not be asked
            return await self._ended(dead_letter_id, _CLOSE, end), True
        item, outcome = await self._ask(row)
        match outcome:
            case Succeeded() | Declined() | Returned() | Verified():
                try:
                    await self._flow.record(item, outcome)  # which resolves it
                except DataRefused as error:
                    _refuse_unstorable(error, alone=alone)
                else:
                    return await self.find(dead_letter_id), False
            case Unknown(trouble=Trouble.MISDIRECTED):
                _require_alone(alone=alone)
            case NotSent() | Unknown() | NotFound():
                pass
            case _:
                raise _forbidden("The provider still works on it; retry the dead letter, and wait.", "PENDING")

        def close(connection: Connection) -> G:
            (claimed,) = self._claimed(connection, item.demand_id)
            made = self._flow.close(connection, claimed, operator, reason)
            end.write(connection, row)
            return made

        async def hand_over() -> None:
            self._flow.failed(item, await self._database.transact(close))

        ours = False
        with suppress(_Overtaken):
            await self._flow.apart(hand_over)
            ours = True
        return await self._ended(dead_letter_id, _CLOSE, end), not ours

    async def _ask(self, row: Row[Any]) -> tuple[H, Answer]:
        """What the provider says to the demand now. Raises PROVIDER_UNAVAILABLE, STATE_FORBIDS."""
        tokens, now = {self.demand_id(row): 0}, asyncio.get_running_loop().time()
        items = await self._database.load(lambda connection: self._flow.load(connection, tokens, now))
        if not items:
            raise _forbidden("It came to its end meanwhile; read the dead letter again.", "RESOLVED")
        (item,) = items
        step = item.step(now, self._flow.execute.key_window(item.provider), self._flow.lease)
        if step in (Step.PREPARE, Step.SETTLE):
            raise _forbidden("It waits for wallet or ledger, not for its provider; retry the dead letter.", "UNSETTLED")
        if step is Step.JUDGE:
            raise _forbidden(
                "Its provider's answer is stored and cannot be applied; remove the cause, then retry the dead letter.", "UNAPPLIED_ANSWER"
            )
        if not self._flow.execute.knows(item.provider):  # nobody is left to ask: the operator's evidence decides
            return item, Unknown(f"the provider {item.provider} is not configured")
        outcome = await self._flow.execute.ask(item, Step.LOOK_UP)
        if isinstance(outcome, HeldBack):
            wait = outcome.seconds or _ASK_AGAIN
            raise Refused(Reason.PROVIDER_UNAVAILABLE, "The provider does not answer, and is asked before anything is closed.", retry_after=wait)
        return item, outcome

    def _claimed(self, connection: Connection, demand_id: str) -> Sequence[H]:
        """The demand, leased. Raises _Overtaken if it came on meanwhile."""
        token = due.claim_aside(connection, demand_id, self._flow.lease) if self._flow.lock_undecided(connection, [demand_id]) else None
        if token is None:
            raise _Overtaken
        return self._flow.load(connection, {demand_id: token}, 0.0)

    async def _ended(self, dead_letter_id: str, verb: Verb, end: _End) -> Row[Any]:
        """The dead letter as it is now. Raises STATE_FORBIDS if somebody else was faster."""
        row = await self.find(dead_letter_id, changed=True)
        if not end.stands_in(row):
            if row.state != DeadLetterState.OPEN:
                raise forbidden("dead letter", row.state, verb)
            raise _forbidden("Somebody else works on it now; read the dead letter again.", row.state, verb)
        return row


class _Overtaken(Exception):
    """Somebody else was faster; nothing is stored."""


@dataclass(frozen=True, slots=True)
class _End:
    """How a dead letter is to end, by whom and why."""

    state: DeadLetterState
    operator: str
    reason: str
    evidence: str = ""

    def stands_in(self, row: Row[Any]) -> bool:
        """Whether it ended so."""
        return (row.state, row.operator, row.reason, row.evidence) == (self.state, self.operator, self.reason, self.evidence)

    def write(self, connection: Connection, row: Row[Any]) -> None:
        """Ends an open dead letter, and tells of it. Raises _Overtaken if it has ended."""
        ended = dead_letter.end(connection, [row.subject], self.state, self.operator, self.reason, self.evidence)
        if [one.dead_letter_id for one in ended] != [row.dead_letter_id]:
            raise _Overtaken
        dead_letters.tell_changed(connection, ended, lambda _: (self.operator, ""))

    def write_all(self, connection: Connection, rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
        """Ends those of dead letters that are open still, and tells of them."""
        subjects, ids = [row.subject for row in rows], [row.dead_letter_id for row in rows]
        ended = dead_letter.end(connection, subjects, self.state, self.operator, self.reason, self.evidence, ids=ids) if rows else ()
        dead_letters.tell_changed(connection, ended, lambda _: (self.operator, ""))
        return ended


class OperatorHandlers(AlertHandlers):
    """Handlers only decode, await and encode. `messages`: the service's generated messages, which have these calls' under the same names."""

    def __init__(self, database: Database, letters: DeadLetters[Any, Any], messages: ModuleType) -> None:
        super().__init__(database, messages)
        self._letters = letters

    async def ListDeadLetters(self, request: Any, _call: Call) -> Any:
        size = page_size(request.page_size)
        state = dead_letters.STATES.parse(request.state, "state", "")
        wanted = replace(_filter(request), state=state)
        token = PageToken("ListDeadLetters", *_as_text(wanted))
        before = token.before(request.page_token)
        rows = await self._database.read(lambda connection: dead_letter.list_(connection, wanted, before, size + 1))
        shown, following = token.page(rows, size, dead_letters.message, _place)
        return self._messages.ListDeadLettersResponse(dead_letters=shown, next_page_token=following)

    async def RetryDeadLetters(self, request: Any, call: Call) -> Any:
        reason = parse_words(request.reason, "reason")
        bulk = await self._bulk("RetryDeadLetters", request)
        if request.dry_run:
            counts, sample = await self._letters.look_over(bulk.wanted)
            return self._messages.RetryDeadLettersResponse(matched=sum(row.letters for row in counts), counts=_counts(counts), sample=sample)
        page, ended, more = await self._letters.retry_many(bulk.wanted, bulk.after, call.caller.name, reason)
        skipped = [_skipped(row, Refused(Reason.STATE_FORBIDS, "It has ended meanwhile.")) for row in page if row.dead_letter_id not in ended]
        return self._messages.RetryDeadLettersResponse(
            matched=len(page), retried=len(ended), skipped=skipped, counts=_counted(page), next_page_token=bulk.following(page, more=more)
        )

    async def CloseDeadLetters(self, request: Any, call: Call) -> Any:
        reason, evidence = parse_words(request.reason, "reason"), parse_words(request.evidence, "evidence")
        bulk = await self._bulk("CloseDeadLetters", request)
        if request.dry_run:
            counts, sample = await self._letters.look_over(bulk.wanted)
            return self._messages.CloseDeadLettersResponse(matched=sum(row.letters for row in counts), counts=_counts(counts), sample=sample)
        page, results, more = await self._letters.close_many(bulk.wanted, bulk.after, call.caller.name, reason, evidence)
        ends = [result.state for result in results if not isinstance(result, Refused)]
        return self._messages.CloseDeadLettersResponse(
            matched=len(page),
            closed=ends.count(DeadLetterState.CLOSED),
            resolved=ends.count(DeadLetterState.RESOLVED),
            skipped=[_skipped(row, result) for row, result in zip(page, results, strict=True) if isinstance(result, Refused)],
            counts=_counted(page),
            next_page_token=bulk.following(page, more=more),
        )

    async def _bulk(self, method: str, request: Any) -> _Bulk:
        """What a call for many is about, from its first page on. Raises FIELD_REQUIRED, FIELD_INVALID, PAGE_TOKEN_INVALID."""
        wanted = _filter(request)
        if request.all and wanted != dead_letter.Filter():
            raise Refused(Reason.FIELD_INVALID, "all must be false, or filter must have no criterion.", field="all")
        if not request.all and wanted == dead_letter.Filter():
            raise Refused(Reason.FIELD_REQUIRED, "filter must have at least one criterion; set all for every open dead letter.", field="filter")
        token = PageToken(method, *_as_text(wanted))
        place = token.parse(request.page_token, str, str, str)
        if place is None:
            now = await self._letters.now()
            until = min(wanted.until_time or now, now)
            return _Bulk(token, replace(wanted, until_time=until), None)
        until, time = parse_token_time(place[0]), parse_token_time(place[1])
        return _Bulk(token, replace(wanted, until_time=until), (time, str(place[2])))

    async def RetryDeadLetter(self, request: Any, call: Call) -> Any:
        reason = parse_words(request.reason, "reason")
        row, replayed = await self._letters.retry(parse_dead_letter_id(request.dead_letter_id), call.caller.name, reason)
        if replayed:
            call.replayed()
        return self._messages.RetryDeadLetterResponse(dead_letter=dead_letters.message(row))

    async def CloseDeadLetter(self, request: Any, call: Call) -> Any:
        reason, evidence = parse_words(request.reason, "reason"), parse_words(request.evidence, "evidence")
        row, replayed = await self._letters.close(parse_dead_letter_id(request.dead_letter_id), call.caller.name, reason, evidence)
        if replayed:
            call.replayed()
        return self._messages.CloseDeadLetterResponse(dead_letter=dead_letters.message(row))


@dataclass(frozen=True, slots=True)
class _Bulk:
    """What a call for many dead letters is about: those of a filter after a place. `token`: makes the next call's."""

    token: PageToken
    wanted: dead_letter.Filter
    after: Place

    def following(self, page: Sequence[Row[Any]], *, more: bool) -> str:
        if not more or self.wanted.until_time is None:
            return ""
        return self.token.make(self.wanted.until_time.astimezone(UTC).isoformat(), *_place(page[-1]))


def _filter(request: Any) -> dead_letter.Filter:
    """Raises FIELD_INVALID."""
    given = request.filter
    if given.cause and given.cause not in DEFAULTS:
        raise Refused(Reason.FIELD_INVALID, f"filter.cause must be one of {', '.join(DEFAULTS)}.", field="filter.cause")
    provider = parse_id(given.provider, "filter.provider") if given.provider else ""
    try:
        from_time, until_time = parse_time(given, "from_time"), parse_time(given, "until_time")
    except Refused as refused:
        raise refused.below("filter") from None
    if from_time is not None and until_time is not None and from_time >= until_time:
        raise Refused(Reason.FIELD_INVALID, "filter.until_time must be later than filter.from_time.", field="filter.until_time")
    return dead_letter.Filter("", given.cause, provider, from_time, until_time)


def _as_text(wanted: dead_letter.Filter) -> list[str]:
    return ["" if value is None else str(value) for value in astuple(wanted)]


def _place(row: Row[Any]) -> tuple[str, str]:
    return row.create_time.isoformat(), row.dead_letter_id


def _counts(rows: Iterable[Row[Any]]) -> list[recovery_pb2.DeadLetterCount]:
    return [recovery_pb2.DeadLetterCount(cause=row.cause, provider=row.provider, count=row.letters) for row in rows]


def _counted(page: Iterable[Row[Any]]) -> list[recovery_pb2.DeadLetterCount]:
    counts = Counter((row.cause, row.provider) for row in page)
    return [recovery_pb2.DeadLetterCount(cause=cause, provider=provider, count=count) for (cause, provider), count in sorted(counts.items())]


def _skipped(row: Row[Any], refused: Refused) -> recovery_pb2.SkippedDeadLetter:
    return recovery_pb2.SkippedDeadLetter(dead_letter_id=row.dead_letter_id, cause=row.cause, error_reason=refused.reason, message=refused.message)


def parse_dead_letter_id(text: str) -> str:
    """Raises FIELD_REQUIRED, FIELD_INVALID."""
    if _DEAD_LETTER_ID.match(text) is None:
        reason = Reason.FIELD_INVALID if text else Reason.FIELD_REQUIRED
        raise Refused(reason, "dead_letter_id must be one that ListDeadLetters gave.", field="dead_letter_id")
    return text


def _refuse_unstorable(error: DataRefused, *, alone: bool) -> None:
    """Raises STATE_FORBIDS unless the answer is only another one's money, which says nothing of this one: then an operator's evidence decides."""
    if not is_anothers_money(error):
        raise _forbidden("What its provider answers cannot be stored, and has to be set right with the provider first.", "UNSTORABLE") from None
    _require_alone(alone=alone)


def _require_alone(*, alone: bool) -> None:
    """Raises STATE_FORBIDS where an answer about another one is to be overruled by evidence that is not about this one alone."""
    if not alone:
        message = "Its provider answers with another one's money; close it by CloseDeadLetter, with evidence about it alone."
        raise _forbidden(message, "MISDIRECTED") from None


def _forbidden(message: str, state: str, verb: Verb = _CLOSE) -> Refused:
    return Refused(Reason.STATE_FORBIDS, message, metadata={"state": state, "verb": verb.name})
