"""One run: the simulation of a seed, from the first call until nothing is in progress and the audit
is done.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tallystick import AsyncClient, TallystickError
from tallystick.operator.v1 import operator_pb2
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import service_names
from tallystick_server.observability import tracing
from tallystick_server.verify.run import run_checks
from tests.chaos.check import OPEN_WORK_SQL, format_open_work
from tests.simulation.alerts import audit_alerts
from tests.simulation.auditor import Auditor, ChargeLogEntry
from tests.simulation.cluster import OPERATOR, PAYMENT_PROVIDERS, TEAMS, Cluster
from tests.simulation.database import ConnectionCache, DatabaseConditions, Tables, VerifyReader
from tests.simulation.faults import FaultInjector, InjectedFault, draw_outage, draw_poison
from tests.simulation.load import (
    PaymentLoad,
    PaymentRequest,
    draw_payment_request,
    to_hosted_request,
    to_stripe_request,
)
from tests.simulation.loop import SimulationDeadlock
from tests.simulation.operator_load import OperatorLoad, resolve_in_bulk
from tests.simulation.page_auditor import SessionLogEntry
from tests.simulation.payout_auditor import PayoutAuditor, TransferLogEntry
from tests.simulation.payout_load import (
    PayoutLoad,
    WithdrawalRequest,
    draw_withdrawal,
    to_stripe_withdrawal,
)
from tests.simulation.seeded_random import SeededRandom
from tests.simulation.statement_load import StatementLoad
from tests.simulation.stripe import CHARGES_SQL, SESSIONS_SQL, TRANSFERS_SQL, UNSENT_WEBHOOKS_SQL
from tests.simulation.webhook_load import STATES_SQL, WebhookLoad
from tests.simulation.world import SLOW_SECONDS, World

_MAX_CALL_SECONDS = 400.0
"""Simulated seconds within which callers must have their answers."""
_MAX_SECONDS_UNTIL_IDLE = 720.0
"""Simulated seconds after healing within which nothing may be in progress: past its key window a
charge is looked up about twelve times, up to an hour apart.
"""
_LAST_MESSAGES_SECONDS = 20.0
"""Seconds after which no message is in transit any more."""
_SHORT_WINDOW_SECONDS, _LONG_WINDOW_SECONDS = 15.0, 86_400.0
_CAUSES_FOR_OPERATOR = frozenset({"REJECTED", "MISMATCHED_OPERATION"})
"""Causes of dead letters that no retry can resolve: requests that the provider rejects as
malformed, and answers about another charge.
"""


@dataclass(frozen=True)
class SimulationPlan:
    """The parameters of a run, which determine it completely. `without`: payments and faults that
    are left out; `planned`: faults at given places.
    """

    seed: int
    payments: int
    fault_rate: float | None = None
    """The share of port calls that get a fault; None: derived from the seed."""
    without_payments: frozenset[int] = frozenset()
    without_faults: frozenset[str] = frozenset()
    planned: Mapping[str, InjectedFault] = field(default_factory=dict)
    payment_requests: tuple[PaymentRequest, ...] = ()
    """Payments in addition to random ones."""
    payouts: int = 0
    """Number of random payouts, and a schedule with a cut-off if there are any."""
    without_payouts: frozenset[int] = frozenset()
    withdrawals: tuple[WithdrawalRequest, ...] = ()
    """Payouts in addition to random ones."""
    single_process_services: frozenset[str] = frozenset()
    """Services with one process; each other service has two."""
    outage: bool | None = None
    """Whether a service or the provider has an outage of an hour; None: derived from the seed."""
    report_rate: float | None = None
    """The share of the provider's answers that it also reports by webhook; None: derived from the
    seed.
    """
    poison: bool | None = None
    """Whether a service fails on some items for up to an hour; None: derived from the seed."""
    routing: bool | None = None
    """Whether there are three payment providers, chosen by rules with fallbacks; None: derived from
    the seed. An outage of the provider is then one of `REPLACEABLE_PROVIDER` alone.
    """
    stripe: bool | None = None
    """Whether the first payment provider and the payout provider are the Stripe adapters with the
    look-alike; None: derived from the seed.
    """
    statement_seconds: float | None = None
    """When the reconciliation job sends its first files; None: at a random time, if there are
    random payments.
    """


@dataclass
class SimulationResult:
    """The result of a run. `seconds_until_idle`: simulated seconds from healing until nothing
    was in progress.
    """

    plan: SimulationPlan
    violations: list[str] = field(default_factory=list)
    faults: dict[str, InjectedFault] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)
    port_calls: list[str] = field(default_factory=list)
    """The port calls that had an effect until nothing was in progress, in order."""
    seconds_until_idle: float = 0.0


class _TraceHandler(logging.Handler):
    """Log lines are part of the trace. A logged error is a violation, because the platform must
    handle every injected fault.
    """

    def __init__(self, world: World, result: SimulationResult) -> None:
        super().__init__(logging.INFO)
        self._world = world
        self._result = result

    def emit(self, record: logging.LogRecord) -> None:
        self._world.log(f"{self._world.loop.current_node.name} logs: {record.getMessage()}")
        if record.levelno >= logging.ERROR:
            error = record.exc_info[1] if record.exc_info else None
            self._result.violations.append(f"logged: {record.getMessage()} {error!r}")


class Simulation:
    """Runs plans on one database, one after the other."""

    def __init__(self, databases: DatabaseUrls) -> None:
        self._urls = databases.all()
        self._tables = Tables(databases)
        self._conditions = DatabaseConditions()
        self._connection_cache = ConnectionCache(self._conditions)
        self._verify_reader = VerifyReader(databases)
        self._is_warm = False

    def run(self, plan: SimulationPlan) -> SimulationResult:
        """Runs a plan. Its result is deterministic."""
        plan = replace(
            plan,
            fault_rate=_fault_rate(plan),
            outage=_is_included(plan, plan.outage, "an outage", 0.25),
            poison=_is_included(plan, plan.poison, "poison", 0.35),
            report_rate=_report_rate(plan),
            routing=_is_included(plan, plan.routing, "routing", 0.3),
            stripe=_is_included(plan, plan.stripe, "Stripe", 0.25),
        )
        result = SimulationResult(plan)
        # A garbage-collected object runs its `finally`, at a moment that depends on all earlier
        # allocations.
        gc.disable()
        world = [self._run_world(plan, result)]
        # Unfinished coroutines are abandoned where they are.
        with _silence_warnings():
            world.clear()
            while gc.collect():
                pass
        # Objects that the first run has loaded and compiled stay alive; scanning them after each
        # run took longer than a short run.
        if not self._is_warm:
            gc.freeze()
            self._is_warm = True
        gc.enable()
        return result

    def _run_world(self, plan: SimulationPlan, result: SimulationResult) -> World:
        self._tables.reset()
        tracing.seed(plan.seed)
        seeded_random = SeededRandom(plan.seed)
        faults = FaultInjector(
            seeded_random, plan.fault_rate or 0.0, plan.without_faults, plan.planned
        )
        clock_drift = {
            service: seeded_random.uniform(f"drift of {service}", -5, 5)
            for service in service_names()
        }
        key_window = (
            _SHORT_WINDOW_SECONDS if seeded_random.number("window") < 0.3 else _LONG_WINDOW_SECONDS
        )
        # A call that outlives its lease could reach the provider after the provider has forgotten
        # the key.
        slow_seconds = (
            (SLOW_SECONDS[0], 5.0) if key_window == _SHORT_WINDOW_SECONDS else SLOW_SECONDS
        )
        world = World(seeded_random, faults, self._conditions, clock_drift, slow_seconds)
        try:
            with _logging_to(_TraceHandler(world, result)):
                world.loop.run_until_complete(self._play(plan, world, key_window, result))
        except SimulationDeadlock:
            result.violations.append("nothing is left that could ever happen")
        except TallystickError as error:
            result.violations.append(f"the operator or the auditor was rejected: {error}")
        # a run that breaks has a seed as any other that fails
        except Exception as error:  # noqa: BLE001
            result.violations.append(f"the run broke: {error!r}")
        finally:
            world.loop.close()
        result.faults, result.trace = faults.injected_faults, world.trace
        return world

    def close(self) -> None:
        self._connection_cache.close()
        self._verify_reader.close()
        self._tables.close()

    async def _play(
        self, plan: SimulationPlan, world: World, key_window: float, result: SimulationResult
    ) -> None:
        webhook_load = WebhookLoad(world, plan.report_rate or 0.0)
        cluster = Cluster(
            world,
            self._urls,
            self._connection_cache,
            key_window,
            webhook_load,
            routing=bool(plan.routing),
            stripe=bool(plan.stripe),
        )
        span_seconds = (
            5.0 + min(plan.payments / 12, 5.0 + plan.payments / 40) if plan.payments else 0.0
        )
        payment_requests = [
            draw_payment_request(world.seeded_random, number, span_seconds)
            for number in range(plan.payments)
            if number not in plan.without_payments
        ]
        if plan.stripe:
            payment_requests = [to_stripe_request(request) for request in payment_requests]
        if plan.stripe and not plan.routing:  # the other providers host no pages
            payment_requests = [
                to_hosted_request(world.seeded_random, request) for request in payment_requests
            ]
        payment_load = PaymentLoad(world, cluster, [*plan.payment_requests, *payment_requests])
        withdrawals = [
            draw_withdrawal(world.seeded_random, number, span_seconds)
            for number in range(plan.payouts)
            if number not in plan.without_payouts
        ]
        if plan.stripe:
            withdrawals = [to_stripe_withdrawal(withdrawal) for withdrawal in withdrawals]
        payout_load = PayoutLoad(world, cluster, [*plan.withdrawals, *withdrawals])
        if plan.outage:
            world.outages = [draw_outage(world.seeded_random, span_seconds)]
            world.log(f"{world.outages[0]}")
        if plan.poison:
            world.poison = draw_poison(world.seeded_random, span_seconds)
            world.log(f"{world.poison}")
        operator_load = OperatorLoad(world, cluster)
        statement_load = StatementLoad(world, cluster, self._charge_log, self._transfer_log)
        cluster.start(plan.single_process_services)
        payment_load.start()
        payout_load.start(with_schedule=plan.payouts > 0)
        if plan.payments:
            operator_load.start()
        if plan.payments or plan.statement_seconds is not None:
            statement_load.start(plan.statement_seconds, span_seconds)
        await asyncio.sleep(
            max(
                [
                    span_seconds,
                    *(planned_outage.end for planned_outage in world.outages),
                    world.poison.end if world.poison else 0.0,
                ]
            )
        )
        world.log("heals")
        world.faults.healed = True
        healed_time = world.loop.now
        operator = cluster.client(OPERATOR, OPERATOR)
        loads = (payment_load, payout_load, operator_load, webhook_load, statement_load)
        while (  # noqa: ASYNC110 - nodes do not share what one waits for
            not all(load.is_idle for load in loads)
            and world.loop.now < healed_time + _MAX_CALL_SECONDS
        ):
            await asyncio.sleep(1.0)
        if not all(load.is_idle for load in loads):
            result.violations.append(f"callers wait {_MAX_CALL_SECONDS:g} s after healing")
        await self._wait_until_idle(
            world,
            webhook_load,
            result,
            healed_time + (_LAST_MESSAGES_SECONDS if world.faults.fault_rate else 0.0),
            healed_time,
        )
        result.seconds_until_idle = world.loop.now - healed_time
        result.port_calls = list(world.calls)
        allowed_causes = _CAUSES_FOR_OPERATOR | (
            {"OUTCOME_UNKNOWN"} if key_window == _SHORT_WINDOW_SECONDS else set()
        )
        for attempt in range(2):
            causes = await self._resolve_dead_letters(operator, world)
            result.violations += [
                f"a dead letter for {cause} needs an operator"
                for cause in sorted(causes - allowed_causes)
                if attempt == 0
            ]
            if causes:
                await self._wait_until_idle(
                    world, webhook_load, result, world.loop.now, world.loop.now
                )
        result.violations += await statement_load.audit(operator)
        result.violations += await audit_alerts(operator, self._tables.query)
        world.is_auditing = True
        teams = {team: cluster.client(f"auditor for {team}", team) for team in TEAMS}
        fault_free = not world.faults.fault_rate
        payout_auditor = PayoutAuditor(
            operator, payout_load.responses, self._transfer_log(), fault_free=fault_free
        )
        auditor = Auditor(
            operator,
            teams,
            payment_load.responses,
            self._charge_log(),
            [SessionLogEntry(*row) for row in self._tables.query(SESSIONS_SQL)],
            payout_auditor,
            fault_free=fault_free,
            is_key_short=key_window == _SHORT_WINDOW_SECONDS,
        )
        await auditor.audit()
        result.violations += [*payout_load.violations, *await operator_load.audit(operator)]
        result.violations += auditor.violations
        for service in ("payment", "payout"):
            stored = self._tables.query(STATES_SQL.format(schema=service))
            result.violations += webhook_load.audit(service, stored)
        report = run_checks(self._verify_reader.read)
        result.violations += [
            f"verify: {violation}" for check in report.checks for violation in check.failures
        ]
        world.log(f"ends with {len(result.violations)} violations")

    async def _wait_until_idle(
        self,
        world: World,
        webhook_load: WebhookLoad,
        result: SimulationResult,
        earliest_time: float,
        start_time: float,
    ) -> None:
        """Waits until nothing is due, every change is published and booked, and every webhook is
        stored.
        """
        while (
            (open_work := self._tables.query(OPEN_WORK_SQL))
            or not webhook_load.is_idle
            or self._tables.query(UNSENT_WEBHOOKS_SQL)
            or world.loop.now < earliest_time
        ):
            if world.loop.now > start_time + _MAX_SECONDS_UNTIL_IDLE:
                result.violations.append(
                    f"not final within {_MAX_SECONDS_UNTIL_IDLE:g} s of healing: "
                    + format_open_work(dict(open_work))
                )
                return
            await asyncio.sleep(1.0)

    async def _resolve_dead_letters(self, operator: AsyncClient, world: World) -> set[str]:
        """An operator requeues or closes dead letters; returns their causes."""
        causes = set()
        services: tuple[Any, ...] = (operator.payment, operator.payout)
        for service in services:
            request = operator_pb2.ListDeadLettersRequest(state=operator_pb2.DEAD_LETTER_STATE_OPEN)
            dead_letters = [
                dead_letter
                async for dead_letter in operator.pages(
                    service.ListDeadLetters, request, "dead_letters"
                )
            ]
            causes |= {
                operator_pb2.DeadLetterCause.Name(dead_letter.cause).removeprefix(
                    "DEAD_LETTER_CAUSE_"
                )
                for dead_letter in dead_letters
            }
            if (
                dead_letters
                and world.seeded_random.number(f"in bulk {dead_letters[0].dead_letter_id}") < 0.5
            ):
                await resolve_in_bulk(
                    operator,
                    service,
                    retry=world.seeded_random.number(f"retry {dead_letters[0].dead_letter_id}")
                    < 0.5,
                )
                continue
            for dead_letter in dead_letters:
                await _resolve_dead_letter(
                    service,
                    dead_letter.dead_letter_id,
                    retry=world.seeded_random.number(f"retry {dead_letter.dead_letter_id}") < 0.5,
                )
        return causes

    def _charge_log(self) -> list[ChargeLogEntry]:
        rows = self._tables.query(
            "select provider, charge_id, state, amount, currency, reference, code "
            "from sandbox.charge order by charge_id, key, generation"
        )
        rows += self._tables.query(CHARGES_SQL.format(provider=PAYMENT_PROVIDERS[0]))
        return [ChargeLogEntry(*row) for row in rows]

    def _transfer_log(self) -> list[TransferLogEntry]:
        rows = self._tables.query(
            "select payout_id, generation, state, amount, currency, returned_amount, reference "
            "from sandbox.transfer order by payout_id, key, generation"
        )
        rows += self._tables.query(TRANSFERS_SQL)
        return [TransferLogEntry(*row) for row in rows]


async def _resolve_dead_letter(service: Any, dead_letter_id: str, *, retry: bool) -> None:
    """Requeues or closes a dead letter, if that is possible."""
    try:
        if retry:
            await service.RetryDeadLetter(
                operator_pb2.RetryDeadLetterRequest(
                    dead_letter_id=dead_letter_id, reason="once more"
                )
            )
        else:
            close_request = operator_pb2.CloseDeadLetterRequest(
                dead_letter_id=dead_letter_id,
                reason="no money moved",
                evidence="the provider's log",
            )
            await service.CloseDeadLetter(close_request)
    except TallystickError as error:
        if error.reason != "INVALID_STATE":
            raise


@contextmanager
def _logging_to(handler: logging.Handler) -> Iterator[None]:
    """Routes every log record in the block to one handler, because other handlers might keep
    objects of the run alive.
    """
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)


@contextmanager
def _silence_warnings() -> Iterator[None]:
    """Suppresses logging, and errors that are raised where nobody can catch them."""
    logging.disable()
    previous_hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        sys.unraisablehook = previous_hook
        logging.disable(logging.NOTSET)


def _is_included(
    plan: SimulationPlan, override: bool | None, subject: str, probability: float
) -> bool:
    """Whether a failure is injected: as given, or by the seed in a share of the runs with random
    payments.
    """
    return (
        override
        if override is not None
        else plan.payments > 0
        and SeededRandom(plan.seed).number(f"whether there is {subject}") < probability
    )


def _fault_rate(plan: SimulationPlan) -> float:
    """The fault rate: zero in some runs, low in most, high in some."""
    if plan.fault_rate is not None:
        return plan.fault_rate
    return SeededRandom(plan.seed).weighted_choice(
        "share", {0.0: 1.0, 0.02: 3.0, 0.05: 5.0, 0.12: 2.0}
    )


def _report_rate(plan: SimulationPlan) -> float:
    """The share of answers that are also reported by webhook: none in half of the runs."""
    if plan.report_rate is not None:
        return plan.report_rate
    if not plan.payments:
        return 0.0
    return SeededRandom(plan.seed).weighted_choice("webhooks", {0.0: 2.0, 0.2: 1.0, 0.7: 1.0})
