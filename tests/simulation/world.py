"""The state of one simulation: its time, random numbers, faults and trace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tallystick_server.operations.claim import Claim
from tests.simulation.database import TRANSACTION_LABEL, DatabaseConditions
from tests.simulation.faults import (
    COMMIT_FAULTS,
    READ_FAULTS,
    TRANSACTION_FAULTS,
    FaultInjector,
    InjectedFault,
    Outage,
    Poison,
)
from tests.simulation.loop import Node, VirtualLoop
from tests.simulation.seeded_random import SeededRandom

PAUSE_SECONDS = (7.0, 15.0)
"""Seconds for which a process is stopped: longer than a lease."""
SLOW_SECONDS = (0.5, 12.0)
"""Seconds that a slow call takes, sometimes longer than its caller waits."""
_POLLS = frozenset(
    {
        "transaction OperationWorker._claim_due.claim",
        "transaction Payments.end_expired.end",
        "transaction SellerOwnerCache.store_owners.<lambda>",
        "transaction Monitor.run_once.refresh_alerts",
        "read UnappliedChargeBooking.run_once.<lambda>",
        "read DeliveryConfirmation.run_once.<lambda>",
        "read WalletScheduler._apply_due.load_page",
        "read OutboxSource.__call__.<lambda>",
        "read relay_positions",
        "read Relay._retry_rejected.<lambda>",
        "read LedgerEvents._load_after.load_unpublished",
        "read PaymentHandlers._load_payments.load",
        "read FailedChargePoller.run_once.load",
        "read CompletedPayoutPoller.run_once.load",
        "transaction BatchGenerator._finish.finish",
        "read PayoutHandlers._load_payouts.<lambda>",
        "read DestinationHandlers._get_visible_destination.<lambda>",
        "read LookupRequests.run_once.list_open",
        "read LedgerReader._read_page.<lambda>",
        "read SequenceTail._read_page.read",
        "read list_due",
        "transaction _end_page",
        "read has_due_objects",
        "read has_due_deliveries",
    }
)
"""Periodic transactions that mostly find no work."""
_EMPTY_CLAIM: tuple[tuple[()], Claim] = ((), Claim({}, [], lost_lease_count=0))
"""The result of a claim that found nothing: no operations, and no provider with more."""
_LEASE_CHECKS = frozenset(
    {
        "transaction PayoutPageCreator.try_acquire_leadership",
        "read ScheduleRunner._load_due_defaults.<lambda>",
        "read ScheduleRunner._load_due_sellers.<lambda>",
        "read BatchGenerator._load_due_batches.load",
    }
)
"""Leader leases; processes crash at these calls only in random simulations."""
PROCESS_DEATH = "a process dies"
"""The entry in the list of calls for a crash."""
PROVIDER_NODE = "provider"
"""The node that gets no faults; the auditor trusts its log."""
_MAX_DELAY_SECONDS = 0.05
"""Seconds that a transaction or a message takes at most without a fault."""


class World:
    """State shared by a run's nodes. `clock_drift`: seconds that the clock of a service's database
    is ahead; `on_process_death` is called for each process that crashes.
    """

    def __init__(
        self,
        seeded_random: SeededRandom,
        faults: FaultInjector,
        conditions: DatabaseConditions,
        clock_drift: Mapping[str, float],
        slow_seconds: tuple[float, float] = SLOW_SECONDS,
    ) -> None:
        self.seeded_random = seeded_random
        self.faults = faults
        self.loop = VirtualLoop(seeded_random, self._port_call)
        self.trace: list[str] = []
        self.calls: list[str] = []
        """The port calls that had an effect, in order; scans that found nothing are excluded."""
        self.on_process_death: Callable[[Node], None] = lambda _: None
        self.outages: Sequence[Outage] = ()
        self.poison: Poison | None = None
        self.is_auditing = False
        """Whether nothing is in progress and only the auditor calls. Its calls take no time,
        because the idle processes would only scan for work.
        """
        self._conditions = conditions
        self._clock_drift = clock_drift
        self._slow_seconds = slow_seconds

    def is_unavailable(self, target: str) -> bool:
        """Whether a service or the provider has an outage now."""
        return any(
            outage.target == target and outage.begin <= self.loop.now < outage.end
            for outage in self.outages
        )

    def active_poison(self, target: str) -> Poison | None:
        """How a service fails on some items now."""
        poison = self.poison
        return (
            poison
            if poison is not None
            and poison.target == target
            and poison.begin <= self.loop.now < poison.end
            else None
        )

    def log(self, line: str) -> None:
        """Adds a line to the trace."""
        self.trace.append(f"{self.loop.now:.6f} {line}")

    def delays(self, call_id: str) -> tuple[float, float, float, float]:
        """Four short durations for a port call, in seconds."""
        if self.is_auditing:
            return 0.0, 0.0, 0.0, 0.0
        a, b, c, d = self.seeded_random.numbers(f"delay {call_id}")
        return (
            a * _MAX_DELAY_SECONDS,
            b * _MAX_DELAY_SECONDS,
            c * _MAX_DELAY_SECONDS,
            d * _MAX_DELAY_SECONDS,
        )

    def inject_fault(
        self, node: Node, call_id: str, weights: Mapping[InjectedFault, float]
    ) -> InjectedFault | None:
        """The fault of a port call of the node, whose id comes from `next_call_id`."""
        fault = self.faults.fault_for(call_id, weights) if node.name != PROVIDER_NODE else None
        if fault is not None:
            self.log(f"{call_id}: {fault}")
        if fault is InjectedFault.PAUSED and node.is_alive:
            self._pause(node)
        return fault

    def database_time(self, service: str) -> float:
        """The present time by the clock of the database of a service, or of the provider."""
        return self.loop.now + self._clock_drift.get(service, 0.0)

    def slow_delay(self, call_id: str) -> float:
        return self.seeded_random.uniform(f"slow {call_id} {self.loop.now}", *self._slow_seconds)

    def kill(self, node: Node) -> None:
        if node.is_alive:
            self.log(f"{node.name} dies")
            self.calls.append(PROCESS_DEATH)
            self.loop.kill(node)
            self.on_process_death(node)

    def _pause(self, node: Node) -> None:
        if node.is_paused:
            return
        node.is_paused = True

        def resume() -> None:
            node.is_paused = False

        self.loop.deliver(
            self.loop.outside,
            self.seeded_random.uniform(f"stop {node.name} {self.loop.now}", *PAUSE_SECONDS),
            resume,
        )

    def _port_call(self, node: Node, run: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        """Runs a transaction at one moment, between two delays."""
        label = TRANSACTION_LABEL.get()
        call_id = self.faults.next_call_id(f"{node.name} {label}")
        delay_before, delay_after, _, _ = self.delays(call_id)
        fault = self.inject_fault(
            node, call_id, TRANSACTION_FAULTS if label.startswith("transaction") else READ_FAULTS
        )
        if fault is InjectedFault.SLOW:
            delay_before += self.slow_delay(call_id)

        def transaction() -> None:
            if fault is InjectedFault.CRASH_BEFORE:
                self.kill(node)
                return
            self._conditions.fault, self._conditions.at_commit = fault, False
            self._conditions.now = self.database_time(node.name.partition("-")[0])
            result, error = None, None
            try:
                result = run()
            # it is raised again where the result is awaited
            except Exception as raised:  # noqa: BLE001
                error = raised
            finally:
                self._conditions.fault = None
            if fault in COMMIT_FAULTS and not self._conditions.at_commit:
                self.faults.discard(call_id)
            found_nothing = label in _POLLS and (not result or result == _EMPTY_CLAIM)
            if not found_nothing and label not in _LEASE_CHECKS:
                self.calls.append(call_id)
            self.log(f"{call_id}{f' raised {type(error).__name__}' if error else ''}")
            if fault is InjectedFault.CRASH_AFTER:
                self.kill(node)
                return
            self.loop.deliver(node, delay_after, complete_future, future, result, error)

        self.loop.deliver(node, delay_before, transaction)


def complete_future(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Completes a future unless it is done."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
