"""The world of one run: its time, its chance, what goes wrong in it, and the trace of what happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .chance import Chance
from .database import LABEL, Conditions
from .faults import AT_COMMIT, READ, TRANSACTION, Fault, Faults, Outage, Poison
from .loop import Node, VirtualLoop

STOPPED = (7.0, 15.0)
"""Seconds for which a process is stopped: longer than a lease."""
SLOW = (0.5, 12.0)
"""Seconds that something slow takes: some of it longer than its caller waits."""
_POLLS = frozenset({
    "transaction Flow._sweep.claim", "transaction PayIn.end_overdue.end", "transaction Monitor.turn.look", "read BookUnapplied.turn.<lambda>", "read Deliver.turn.<lambda>", "read Sweep._all.page",
    "read FromOutbox.__call__.<lambda>", "read relayed", "read Relay._try_again.<lambda>", "read LedgerEvents.__call__.unpublished", "read PaymentHandlers._read.payments", "read Watch.turn.read",
    "transaction Collect._close.close",
    "read PayoutHandlers._payout.<lambda>", "read PayoutHandlers._destination.<lambda>",
})  # fmt: skip
"""What is done again and again, and mostly finds nothing."""
_TURNS = frozenset({"transaction Collect._is_ours", "read Collect.turn.<lambda>", "read Collect.turn.look"})
"""What tells whose turn it is; only worlds by chance let processes die there."""
DEATH = "a process dies"
"""What stands among the calls when one does."""
PROVIDER = "provider"
"""The node that nothing befalls: what it did is the truth."""
_SOON = 0.05
"""Seconds that a transaction, or a message's way, takes at most when nothing is wrong."""


class World:
    """Everything that a run's nodes share. `drift`: seconds that the clock of a service's database is ahead; `died` is called for each process that dies."""

    def __init__(self, chance: Chance, faults: Faults, server: Conditions, drift: Mapping[str, float], slow: tuple[float, float] = SLOW) -> None:
        self.chance = chance
        self.faults = faults
        self.loop = VirtualLoop(chance, self._port_call)
        self.trace: list[str] = []
        self.calls: list[str] = []
        """The port calls that did something, beside looking and finding nothing; in order."""
        self.died: Callable[[Node], None] = lambda _: None
        self.outages: Sequence[Outage] = ()
        self.poison: Poison | None = None
        self.audited = False
        """Whether all is at rest and only an auditor calls: what he asks takes no time, in which everybody would look for work in vain."""
        self._server = server
        self._drift = drift
        self._slow = slow

    def is_away(self, target: str) -> bool:
        """Whether nobody reaches a service, or the provider, now."""
        return any(one.target == target and one.begin <= self.loop.now < one.end for one in self.outages)

    def poisons(self, target: str) -> Poison | None:
        """How a service fails on some items now."""
        one = self.poison
        return one if one is not None and one.target == target and one.begin <= self.loop.now < one.end else None

    def tell(self, line: str) -> None:
        """Adds a line to the trace."""
        self.trace.append(f"{self.loop.now:.6f} {line}")

    def delays(self, place: str) -> tuple[float, float, float, float]:
        """Four short times for a port call, in seconds."""
        if self.audited:
            return 0.0, 0.0, 0.0, 0.0
        a, b, c, d = self.chance.numbers(f"delay {place}")
        return a * _SOON, b * _SOON, c * _SOON, d * _SOON

    def befalls(self, node: Node, place: str, kinds: Mapping[Fault, float]) -> Fault | None:
        """The fault that befalls a port call of the node, which `numbered` has named."""
        fault = self.faults.at(place, kinds) if node.name != PROVIDER else None
        if fault is not None:
            self.tell(f"{place}: {fault}")
        if fault is Fault.STOPS and node.alive:
            self._stop(node)
        return fault

    def slow(self, place: str) -> float:
        return self.chance.between(f"slow {place} {self.loop.now}", *self._slow)

    def kill(self, node: Node) -> None:
        if node.alive:
            self.tell(f"{node.name} dies")
            self.calls.append(DEATH)
            self.loop.kill(node)
            self.died(node)

    def _stop(self, node: Node) -> None:
        if node.stopped:
            return
        node.stopped = True

        def go_on() -> None:
            node.stopped = False

        self.loop.deliver(self.loop.outside, self.chance.between(f"stop {node.name} {self.loop.now}", *STOPPED), go_on)

    def _port_call(self, node: Node, run: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        """A transaction: at one moment, between two delays."""
        label = LABEL.get()
        place = self.faults.numbered(f"{node.name} {label}")
        before, after, _, _ = self.delays(place)
        fault = self.befalls(node, place, TRANSACTION if label.startswith("transaction") else READ)
        if fault is Fault.SLOW:
            before += self.slow(place)

        def transaction() -> None:
            if fault is Fault.DIES_BEFORE:
                self.kill(node)
                return
            self._server.fault, self._server.at_commit = fault, False
            self._server.now = self.loop.now + self._drift.get(node.name.partition("-")[0], 0.0)
            result, error = None, None
            try:
                result = run()
            except Exception as raised:  # noqa: BLE001 - it is raised again where the result is awaited
                error = raised
            finally:
                self._server.fault = None
            if fault in AT_COMMIT and not self._server.at_commit:
                self.faults.had_no_effect(place)
            if (result or label not in _POLLS) and label not in _TURNS:
                self.calls.append(place)
            self.tell(f"{place}{f' raised {type(error).__name__}' if error else ''}")
            if fault is Fault.DIES_AFTER:
                self.kill(node)
                return
            self.loop.deliver(node, after, settle, future, result, error)

        self.loop.deliver(node, before, transaction)


def settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Completes a future, if nobody has."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
