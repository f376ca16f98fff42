"""Accept: payouts are stored, or found, in one transaction for each batch.

What a payout is made of is decided here: its amount, its fee, what stays in the wallet, where it goes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.payable import Funds, amount_to_pay
from tallystick_core.payout import NewPayout, first_difference
from tallystick_core.refusal import Refused, id_taken, key_reused
from tallystick_server.payout import events
from tallystick_server.payout.grounds import Grounds, owner_of_seller, place_of
from tallystick_server.payout.payout import Payout, new_payout
from tallystick_server.runtime.relay import telling
from tallystick_server.runtime.stage import once_per_key
from tallystick_server.runtime.telemetry import SpanContext
from tallystick_storage.database import Database
from tallystick_storage.payout import payouts as store


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payout that has been asked for. `funds` None: they are still to be read from the wallet."""

    payout: NewPayout
    traceparent: str
    context: SpanContext
    funds: Funds | None = None
    payout_batch_id: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.payout.seller_account, self.payout.currency


@dataclass(frozen=True, slots=True)
class Accepted:
    """The payout is on disk. `replayed`: it was before."""

    payout_id: str
    replayed: bool


Result = Accepted | Refused


@dataclass(slots=True)
class Judged:
    """What is to be stored, and what is answered already: refusals, and payouts that exist. By payout id."""

    results: dict[str, Result] = field(default_factory=dict)
    new: dict[str, tuple[Arrival, store.NewPayout, str]] = field(default_factory=dict)
    """With the token of the bank account."""

    def without(self, payout_ids: AbstractSet[str]) -> Judged:
        """The same, but for some payouts that are not to be stored after all."""
        results = {id_: result for id_, result in self.results.items() if id_ not in payout_ids}
        return Judged(results, {id_: new for id_, new in self.new.items() if id_ not in payout_ids})


@dataclass(slots=True)
class Stored:
    """What a transaction has stored, and the results of all that it was to store."""

    results: dict[str, Result] = field(default_factory=dict)
    payouts: list[Payout] = field(default_factory=list)


class Accept:
    """The accept stage's work. Each payout it has stored is handed on, leased to this process.

    `funds`: reads what wallets hold, by (seller, currency); `owners`: whom sellers belong to.
    """

    def __init__(
        self,
        database: Database,
        funds: Callable[[Sequence[tuple[str, str]]], Awaitable[Mapping[tuple[str, str], Funds]]],
        owners: Callable[[Sequence[str]], Awaitable[Mapping[str, str]]],
        environment: str,
        lease: float,
        hand_on: Callable[[Payout], None],
    ) -> None:
        self._database = database
        self._funds = funds
        self._owners = owners
        self._environment = environment
        self._lease = lease
        self._hand_on = hand_on

    async def run(self, arrivals: Sequence[Arrival]) -> Sequence[Accepted | Exception]:
        """One result for each arrival: accepted, KEY_REUSED, ID_TAKEN, or why it cannot be paid."""
        return await once_per_key(
            arrivals,
            lambda arrival: (arrival.payout.payout_id, arrival.payout.fingerprint()),
            self._accept,
        )

    async def _accept(self, arrivals: Sequence[Arrival]) -> Sequence[Accepted | Exception]:
        judged = await self.judge(arrivals)
        results = dict(judged.results)
        if judged.new:
            deadline = self.deadline()
            stored = await self._database.transact(lambda connection: self.insert(connection, judged, deadline))
            results |= stored.results
            self.hand_on(stored.payouts)
        return [results[arrival.payout.payout_id] for arrival in arrivals]

    def deadline(self) -> float:
        """The loop's time at which a lease ends that begins now."""
        return asyncio.get_running_loop().time() + self._lease

    def hand_on(self, payouts: Sequence[Payout]) -> None:
        """Takes payouts on their way that were stored, once that is committed."""
        for payout in payouts:
            self._hand_on(payout)

    async def judge(self, arrivals: Sequence[Arrival]) -> Judged:
        """What becomes of payouts that are asked for, as things stand now. Only the hold makes sure of the money."""
        ids = sorted(arrival.payout.payout_id for arrival in arrivals)
        taken = await self._database.load(lambda connection: store.taken(connection, ids))
        judged = Judged()
        fresh = []
        for arrival in arrivals:
            row = taken.get(arrival.payout.payout_id)
            if row is not None:
                judged.results[row.payout_id] = _repeat(arrival.payout, row)
            else:
                fresh.append(arrival)
        if fresh:
            unread = sorted({arrival.key for arrival in fresh if arrival.funds is None})
            known = await self._funds(unread) if unread else {}
            owners = await self._owners(sorted({arrival.payout.seller_account for arrival in fresh}))
            keys = sorted({arrival.key for arrival in fresh})
            named = sorted({arrival.payout.payout_destination_id for arrival in fresh} - {""})
            grounds = await self._database.load(lambda connection: Grounds.read(connection, keys, owners, named))
            taken_now: Counter[tuple[str, str]] = Counter()
            for arrival in sorted(fresh, key=lambda one: one.payout.amount is None):  # whatever can be paid is what the others leave
                funds = arrival.funds or known.get(arrival.key, Funds())
                left = funds.without(taken_now[arrival.key]) if arrival.payout.amount is None else funds
                taken_now[arrival.key] += self._judge(judged, arrival, left, grounds, owners)
        return judged

    def _judge(self, judged: Judged, arrival: Arrival, funds: Funds, grounds: Grounds, owners: Mapping[str, str]) -> int:
        """What it takes from its wallet."""
        payout = arrival.payout
        terms = grounds.terms(arrival.key)
        try:
            owner = owner_of_seller(payout.seller_account, payout.owner, owners)
            to = grounds.destination(payout, owner)
            amount = amount_to_pay(payout.amount, funds, terms, place_of(to))
        except Refused as refused:
            judged.results[payout.payout_id] = refused
            return 0
        if to is None:
            raise TypeError("amount_to_pay lets nothing pass without a destination")
        new = store.NewPayout(
            payout_id=payout.payout_id,
            caller=payout.caller,
            owner=owner,
            fingerprint=payout.fingerprint().hex(),
            asked_amount=payout.amount,
            asked_destination=payout.payout_destination_id,
            seller_account=payout.seller_account,
            amount=amount,
            fee=terms.fee,
            reserve=terms.reserve,
            currency=payout.currency,
            payout_destination_id=to.payout_destination_id,
            payout_batch_id=arrival.payout_batch_id,
            provider=to.provider,
            traceparent=arrival.traceparent,
        )
        judged.new[payout.payout_id] = (arrival, new, to.bank_account_token)
        return amount

    def insert(self, connection: Connection, judged: Judged, deadline: float) -> Stored:
        """Stores what is new, in the transaction of whoever asks; `deadline` is the loop's time at which the lease ends."""
        rows = store.insert(connection, [new for _, new, _ in judged.new.values()], self._lease)
        stored = Stored()
        with telling(connection, rows.values()) as told:
            for payout_id, row in rows.items():
                arrival, new, token = judged.new[payout_id]
                payout = new_payout(new, row, token, self._environment, deadline, arrival.context)
                events.payout_changed(told, payout.message, new.traceparent)
                stored.payouts.append(payout)
                stored.results[payout_id] = Accepted(payout_id, replayed=False)
        late = sorted(judged.new.keys() - rows.keys())
        if late:  # another process stored them since we looked; the next statement sees them
            for payout_id, row in store.taken(connection, late).items():
                stored.results[payout_id] = _repeat(judged.new[payout_id][0].payout, row)
        return stored


def _repeat(sent: NewPayout, row: Row[Any]) -> Result:
    """The answer to an id that exists: the payout, or why not."""
    if sent.owner not in ("", row.owner):
        return id_taken("payout_id")
    if bytes(row.fingerprint) == sent.fingerprint():
        return Accepted(row.payout_id, replayed=True)
    stored = NewPayout(row.payout_id, row.caller, row.owner, row.seller_account, row.asked_amount, row.currency, row.asked_destination)
    return key_reused(first_difference(sent, stored))
