"""The circuit breaker: a counterpart that fails is left alone, and found again by one probe at a time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.payable import DestinationState
from tallystick_core.provider import ChargeDemand, Outcome, Succeeded, Unknown
from tallystick_core.recovery import Step
from tallystick_server.payment.charge import Charge
from tallystick_server.payout.destination import Unverified
from tallystick_server.runtime.breaker import Breaker, BreakerSettings
from tallystick_server.runtime.execute import Execute, HeldBack
from tallystick_server.runtime.telemetry import current_context

SETTINGS = BreakerSettings(failures=3, rest=10, longest_rest=40)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker("x", SETTINGS)
    for number in range(SETTINGS.failures):
        breaker.failed(now, f"call {number}")
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    """A success between failures starts the count anew; the last one of a row opens it."""
    breaker = Breaker("x", SETTINGS)
    for _ in range(5):
        breaker.failed(0, "a")
        breaker.failed(0, "b")
        breaker.succeeded()
    assert breaker.held_back(0, "new") is None
    assert opened().held_back(4, "new") == 6


def test_one_call_that_fails_for_ever_does_not_open_it() -> None:
    """However often the same call fails, it is not the counterpart that fails; another call's success forgets it."""
    breaker = Breaker("x", SETTINGS)
    for _ in range(50):
        breaker.failed(0, "poison")
    assert not breaker.is_open()
    breaker.failed(0, "a")
    breaker.failed(0, "b")
    assert breaker.is_open()


def test_there_is_no_use_in_asking_with_bad_credentials() -> None:
    """One answer of that kind opens it."""
    breaker = Breaker("x", SETTINGS)
    breaker.failed(0, "a", at_once=True)
    assert breaker.held_back(0, "new") == 10


def test_one_probe_at_a_time() -> None:
    """When its rest is over one call is let through, the others wait; its success closes it."""
    breaker = opened()
    assert breaker.held_back(10, "new") is None
    assert breaker.held_back(10, "new") == 10
    breaker.succeeded()
    assert [breaker.held_back(10, "new") for _ in range(5)] == [None] * 5
    assert not breaker.is_open()


def test_calls_that_failed_are_not_the_probe_before_others() -> None:
    """When its rest is over a call that has not failed is let through; those that have come after the first rest once more, and say nothing new."""
    breaker = opened()
    assert breaker.held_back(10, "call 0") == 10
    assert breaker.held_back(20, "call 0") is None
    breaker.failed(20, "call 0")
    assert breaker.held_back(20, "call 0") == 20
    assert breaker.held_back(30, "new") is None


def test_failed_probes_are_farther_and_farther_apart() -> None:
    """Each call more doubles the rest up to the longest; failures of calls that were under way change nothing."""
    breaker, now, rests = opened(), 10.0, []
    for number in range(4):
        breaker.failed(now, "late")
        assert breaker.held_back(now, "new") is None
        breaker.failed(now, f"probe {number}")
        rests.append(breaker.held_back(now, "new"))
        now += rests[-1] or 0
    assert rests == [20, 40, 40, 40]


def test_somebody_new_is_the_probe_when_nobody_who_waits_comes() -> None:
    """After its rest an open breaker lacks a probe, or after as long again while others wait, until one is under way; a failed probe rests again."""
    breaker = Breaker("x", SETTINGS)
    assert not breaker.lacks_probe(10, others_wait=False)
    breaker = opened()
    assert [breaker.lacks_probe(now, others_wait=False) for now in (9, 10)] == [False, True]
    assert [breaker.lacks_probe(now, others_wait=True) for now in (10, 19, 20)] == [False, False, True]
    assert breaker.held_back(20, "new") is None
    assert not breaker.lacks_probe(1000, others_wait=False)
    breaker.failed(20, "new")
    assert [breaker.lacks_probe(now, others_wait=False) for now in (39, 40)] == [False, True]
    assert [breaker.lacks_probe(now, others_wait=True) for now in (59, 60)] == [False, True]
    breaker.succeeded()
    assert not breaker.lacks_probe(1000, others_wait=False)


@given(st.lists(st.tuples(st.sampled_from(["ask", "fail", "succeed"]), st.floats(0, 30)), max_size=60))
def test_it_never_stays_shut(steps: list[tuple[str, float]]) -> None:
    """Whatever happened, a call is let through after the longest rest, unless a probe is under way; and a success lets all through."""
    breaker, now, probing = Breaker("x", SETTINGS), 0.0, False
    for number, (step, wait) in enumerate(steps):
        now += wait
        if step == "ask":
            probing = probing or (breaker.is_open() and breaker.held_back(now, "new") is None)
        elif step == "fail":
            breaker.failed(now, str(number))
            probing = False
        else:
            breaker.succeeded()
            probing = False
    if not probing:
        assert breaker.held_back(now + SETTINGS.longest_rest, "new") is None
    breaker.succeeded()
    assert breaker.held_back(now, "new") is None


class Moody:
    """A provider that fails, then hangs, then answers."""

    name = "moody"
    key_window = 3600.0

    def __init__(self) -> None:
        self.hangs = False
        self.fails = True

    async def send(self, demand: ChargeDemand) -> Outcome:
        if self.hangs:
            await asyncio.Event().wait()
        return Unknown("no") if self.fails else Succeeded("r", 1, demand.currency)

    look_up = cancel = send


class Unverifying(Moody):
    """A provider that answers all but verifications."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False

    async def verify(self, _bank_account_token: str, _currency: str) -> Unknown:
        return Unknown("no")


async def ours(_item: object) -> bool:
    """Nobody takes anything over."""
    return True


def some_charge() -> Charge:
    """A charge that is leased for an hour."""
    return Charge(
        demand_id="c", checkout_id="c", caller="t", owner="t", number=1, provider="moody", provider_key="k", currency="EUR", payment_token="t",
        payment_method_type="CARD", orders=(), lease_token=1, lease_deadline=asyncio.get_running_loop().time() + 3600, traceparent="",
        context=current_context(),
    )  # fmt: skip


class OneSided:
    """A provider that fails at one kind of call, and answers the other."""

    name = "moody"
    key_window = 3600.0

    def __init__(self, failing: Step) -> None:
        self._failing = failing

    async def send(self, demand: ChargeDemand) -> Outcome:
        return self._answer(Step.SEND, demand)

    async def look_up(self, demand: ChargeDemand) -> Outcome:
        return self._answer(Step.LOOK_UP, demand)

    cancel = look_up

    def _answer(self, step: Step, demand: ChargeDemand) -> Outcome:
        return Unknown("no") if step is self._failing else Succeeded("r", 1, demand.currency)


@pytest.mark.parametrize(("failing", "answered"), [(Step.SEND, Step.LOOK_UP), (Step.SEND, Step.CANCEL), (Step.LOOK_UP, Step.SEND)])
def test_a_provider_is_asked_what_it_still_answers(failing: Step, answered: Step) -> None:
    """Sends that fail keep no look-up and no cancellation back, nor the other way round; and what is answered does not have the failing kind sent again."""

    async def main() -> None:
        execute = Execute({"moody": OneSided(failing)}, ours, most=5, timeout=30, breaker=BreakerSettings(failures=1, rest=3600, longest_rest=3600))
        charge = some_charge()
        assert isinstance(await execute.ask(charge, failing), Unknown)
        for _ in range(2):
            assert isinstance(await execute.ask(charge, answered), Succeeded)
            assert isinstance(await execute.ask(charge, failing), HeldBack)
        assert execute.is_held_back("moody") == (failing is Step.SEND)

    asyncio.run(main())


def test_bank_accounts_that_cannot_be_verified_hold_no_payout_up() -> None:
    """Verifications that fail, however they are asked for, keep no send and no look-up back."""

    async def main() -> None:
        provider = Unverifying()
        execute = Execute({"moody": provider}, ours, most=5, timeout=30, breaker=BreakerSettings(failures=1, rest=3600, longest_rest=3600))
        account = Unverified(
            demand_id="d", caller="t", number=1, provider="moody", provider_key="", lease_token=1, traceparent="", context=current_context(),
            lease_deadline=asyncio.get_running_loop().time() + 3600, maybe_sent=True, payout_destination_id="1", currency="EUR", bank_account_token="ba",
            state=DestinationState.PENDING_VERIFICATION,
        )  # fmt: skip
        assert isinstance(await execute.ask(account, Step.SEND), Unknown)
        for step in (Step.SEND, Step.LOOK_UP):
            assert isinstance(await execute.ask(account, step), HeldBack)
            assert isinstance(await execute.ask(some_charge(), step), Succeeded)

    asyncio.run(main())


def test_a_probe_whose_caller_went_away_is_no_probe() -> None:
    """When the call that probes is cancelled, the next one probes in its place."""

    async def main() -> None:
        provider = Moody()
        execute = Execute({"moody": provider}, ours, most=5, timeout=30, breaker=BreakerSettings(failures=1, rest=0.0, longest_rest=0.0))
        charge = some_charge()
        assert isinstance(await execute.ask(charge, Step.SEND), Unknown)
        provider.hangs = True
        probe = asyncio.ensure_future(execute.ask(charge, Step.SEND))
        await asyncio.sleep(0)
        assert isinstance(await execute.ask(charge, Step.SEND), HeldBack)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        provider.hangs = provider.fails = False
        assert isinstance(await execute.ask(charge, Step.SEND), Succeeded)

    asyncio.run(main())
