"""Which sellers a caller may name in orders: those of its owner, and those that belong to nobody, which it claims."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tallystick_core.refusal import Reason, Refused
from tallystick_server.runtime.peers import PeerRefused
from tallystick_server.runtime.sellers import SellerOwners
from tallystick_server.runtime.stage import CALLERS_WAITING, Stage, by_halves
from tallystick_server.runtime.wire import MOST_ITEMS
from tallystick_storage.database import Database
from tallystick_storage.payment import sellers as store

log = logging.getLogger(__name__)

_TIMEOUT = 5.0
_KNOWN_TIMEOUT = 1.0
"""For known sellers, which are sold for without an answer as well."""
_AWAY = 5.0  # seconds for which WalletService is not asked about known sellers once it has not answered
_MAX_KNOWN = 100_000


@dataclass(frozen=True, slots=True)
class _Question:
    """Sellers that an owner's order names, of which this process is not sure."""

    owner: str
    sellers: tuple[str, ...]
    stored: Mapping[str, str]
    """Their owners as they were last known here."""

    @property
    def known(self) -> bool:
        """Whether all of them were its owner's when WalletService was last asked."""
        return all(self.stored.get(seller) == self.owner for seller in self.sellers)


@dataclass(frozen=True, slots=True)
class _Known:
    owner: str
    until: float
    """The loop's time until which it is believed."""


class KnownSellers:
    """Asks WalletService about a seller at most every `interval` seconds, so that an assignment takes effect here within that time.

    A known seller stays usable while WalletService does not answer; that a seller belongs to somebody else is never believed without asking.
    """

    def __init__(self, database: Database, owners: SellerOwners, interval: float) -> None:
        self._database = database
        self._owners = owners
        self._interval = interval
        self._known: dict[str, _Known] = {}
        self._away_until = 0.0
        self.looking: Stage[tuple[str, ...], Mapping[str, str]] = Stage(
            "payment.stored_sellers", self._look, most=MOST_ITEMS, weight=len, lanes=2, for_callers=True, max_waiting=CALLERS_WAITING
        )
        # what needs an answer of WalletService, and so waits while that hangs, delays nobody who can do without
        self.asking = self._stage("payment.new_sellers")
        self.refreshing = self._stage("payment.known_sellers")

    def _stage(self, name: str) -> Stage[_Question, Mapping[str, str]]:
        return Stage(
            name,
            lambda questions: by_halves(self._answer, questions),
            most=MOST_ITEMS,
            weight=lambda question: len(question.sellers),
            lanes=2,
            for_callers=True,
            max_waiting=CALLERS_WAITING,
        )

    @property
    def stages(self) -> tuple[Stage[Any, Any], ...]:
        return (self.looking, self.refreshing, self.asking)

    async def of_others(self, owner: str, sellers: Collection[str], require_storable: Callable[[], Awaitable[None]]) -> set[str]:
        """Those of the sellers that belong to another owner; if there are none, all of them belong to this one now.

        `require_storable` raises Refused before sellers are claimed for a payment that will not be stored. Raises that, and DEPENDENCY_UNAVAILABLE.
        """
        now = asyncio.get_running_loop().time()
        unsure = tuple(sorted(seller for seller in sellers if not self._is_sure(seller, owner, now)))
        if not unsure:
            return set()
        stored = await self.looking.submit(unsure)
        question = _Question(owner, unsure, {seller: stored[seller] for seller in unsure if seller in stored})
        if not question.known:
            await require_storable()
        found = await (self.refreshing if question.known else self.asking).submit(question)
        others = {seller for seller in unsure if found.get(seller, owner) != owner}
        return others or {seller for seller in unsure if seller not in found}  # claimed by nobody: never stored

    def _is_sure(self, seller: str, owner: str, now: float) -> bool:
        known = self._known.get(seller)
        return known is not None and known.owner == owner and now < known.until

    async def _look(self, sellers: Sequence[tuple[str, ...]]) -> Sequence[Mapping[str, str]]:
        """The owners that are stored here, by seller, the same for each."""
        names = sorted({seller for one in sellers for seller in one})
        stored = await self._database.load(lambda connection: store.stored(connection, names))
        return [stored] * len(sellers)

    async def _answer(self, questions: Sequence[_Question]) -> Sequence[Mapping[str, str] | Exception]:
        """Owners by seller for each question, or why they cannot be known. Raises PeerRefused for several questions, one of which may be at fault."""
        now = asyncio.get_running_loop().time()
        names = sorted({seller for question in questions for seller in question.sellers})
        known = all(question.known for question in questions)
        if known and now < self._away_until:
            return [question.stored for question in questions]
        try:
            async with asyncio.timeout(_KNOWN_TIMEOUT if known else _TIMEOUT):
                owners = await self._ask(questions, names)
        except (TimeoutError, Refused, PeerRefused) as error:
            if isinstance(error, PeerRefused):
                if len(questions) > 1:
                    raise
                log.warning("whom a seller belongs to is not known: %s", error)
            else:
                self._away_until = asyncio.get_running_loop().time() + _AWAY
            message = "It cannot be known now whom a seller belongs to. Nothing was stored."
            refused = error if isinstance(error, Refused) else Refused(Reason.DEPENDENCY_UNAVAILABLE, message, retry_after=1.0)
            return [one.stored if one.known else refused for one in questions]
        self._away_until = 0.0
        await self._keep(owners, {seller: owner for one in questions for seller, owner in one.stored.items()})
        return [owners] * len(questions)

    async def _ask(self, questions: Sequence[_Question], names: Sequence[str]) -> dict[str, str]:
        """Owners by seller. A payment claims all of its sellers, or none where one of them is somebody else's."""
        owners = await self._owners.of(names)
        if all(seller in owners for seller in names):
            return owners
        claims = [(seller, question.owner, group) for group, question in enumerate(questions, start=1) for seller in question.sellers]
        return await self._owners.claim(claims)

    async def _keep(self, owners: Mapping[str, str], stored: Mapping[str, str]) -> None:
        until = asyncio.get_running_loop().time() + self._interval
        for seller, owner in owners.items():
            self._known.pop(seller, None)
            self._known[seller] = _Known(owner, until)
        while len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        new = {seller: owner for seller, owner in owners.items() if stored.get(seller) != owner}
        if new:
            await self._database.transact(lambda connection: store.store(connection, new))
