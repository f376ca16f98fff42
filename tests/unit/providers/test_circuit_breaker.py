"""The circuit breaker stops calls to a failing provider, and sends one probe at a time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payout.destination import DestinationState
from tallystick_core.provider.outcome import ChargeOutcome, ProviderOutcome, Succeeded, Unknown
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.observability.tracing import current_context
from tallystick_server.operations.kind import default_circuit
from tallystick_server.payment.charge import Charge
from tallystick_server.payment.operations import charge as charge_kind
from tallystick_server.payout.destination_verification import DestinationVerification
from tallystick_server.payout.operations import destination_verification as verification_kind
from tallystick_server.providers.circuit_breaker import Breaker, BreakerSettings
from tallystick_server.providers.gateway import NotCalled, ProviderGateway
from tallystick_server.providers.provider_type import CallLimits

SETTINGS = BreakerSettings(
    failure_threshold=3, reset_timeout_seconds=10, max_reset_timeout_seconds=40
)


def open_breaker(now: float = 0.0) -> Breaker:
    breaker = Breaker("x", SETTINGS)
    for number in range(SETTINGS.failure_threshold):
        breaker.record_failure(now, f"call {number}")
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    """A success resets the failure count; the last failure of a row opens the circuit."""
    breaker = Breaker("x", SETTINGS)
    for _ in range(5):
        breaker.record_failure(0, "a")
        breaker.record_failure(0, "b")
        breaker.record_success()
    assert breaker.admit_or_delay(0, "new") is None
    assert open_breaker().admit_or_delay(4, "new") == 6


def test_repeated_failures_of_one_call_do_not_open_it() -> None:
    """Repeated failures of the same call do not open the circuit; another call's success resets
    them.
    """
    breaker = Breaker("x", SETTINGS)
    for _ in range(50):
        breaker.record_failure(0, "poison")
    assert not breaker.is_open()
    breaker.record_failure(0, "a")
    breaker.record_failure(0, "b")
    assert breaker.is_open()


def test_one_rejection_of_credentials_opens_it() -> None:
    """One answer of that kind opens the circuit."""
    breaker = Breaker("x", SETTINGS)
    breaker.record_failure(0, "a", trip=True)
    assert breaker.admit_or_delay(0, "new") == 10


def test_one_probe_at_a_time() -> None:
    """After the reset timeout one call is sent, the others wait; its success closes the circuit."""
    breaker = open_breaker()
    assert breaker.admit_or_delay(10, "new") is None
    assert breaker.admit_or_delay(10, "new") == 10
    breaker.record_success()
    assert [breaker.admit_or_delay(10, "new") for _ in range(5)] == [None] * 5
    assert not breaker.is_open()


def test_calls_that_failed_are_not_the_probe_before_others() -> None:
    """After the reset timeout a call that has not failed before is sent. Calls that failed before
    wait once more, and do not count as new failures.
    """
    breaker = open_breaker()
    assert breaker.admit_or_delay(10, "call 0") == 10
    assert breaker.admit_or_delay(20, "call 0") is None
    breaker.record_failure(20, "call 0")
    assert breaker.admit_or_delay(20, "call 0") == 20
    assert breaker.admit_or_delay(30, "new") is None


def test_failed_probes_double_the_reset_timeout() -> None:
    """Each failed call doubles the reset timeout up to the maximum; failures of calls that were
    already in flight change nothing.
    """
    breaker, current_time, reset_timeouts = open_breaker(), 10.0, []
    for number in range(4):
        breaker.record_failure(current_time, "late")
        assert breaker.admit_or_delay(current_time, "new") is None
        breaker.record_failure(current_time, f"probe {number}")
        reset_timeouts.append(breaker.admit_or_delay(current_time, "new"))
        current_time += reset_timeouts[-1] or 0
    assert reset_timeouts == [20, 40, 40, 40]


def test_a_new_call_is_the_probe_if_no_waiting_call_returns() -> None:
    """An open circuit needs a probe from its reset timeout on, or after as long again while others
    wait, until one is in flight. A failed probe restarts the timeout.
    """
    breaker = Breaker("x", SETTINGS)
    assert not breaker.needs_probe(10, others_waiting=False)
    breaker = open_breaker()
    assert [
        breaker.needs_probe(current_time, others_waiting=False) for current_time in (9, 10)
    ] == [False, True]
    assert [
        breaker.needs_probe(current_time, others_waiting=True) for current_time in (10, 19, 20)
    ] == [False, False, True]
    assert breaker.admit_or_delay(20, "new") is None
    assert not breaker.needs_probe(1000, others_waiting=False)
    breaker.record_failure(20, "new")
    assert [
        breaker.needs_probe(current_time, others_waiting=False) for current_time in (39, 40)
    ] == [False, True]
    assert [
        breaker.needs_probe(current_time, others_waiting=True) for current_time in (59, 60)
    ] == [False, True]
    breaker.record_success()
    assert not breaker.needs_probe(1000, others_waiting=False)


@given(
    st.lists(st.tuples(st.sampled_from(["ask", "fail", "succeed"]), st.floats(0, 30)), max_size=60)
)
def test_it_never_stays_open_without_a_probe(steps: list[tuple[str, float]]) -> None:
    """In every state a call is sent after the maximum reset timeout, unless a probe is in flight; a
    success lets all calls through.
    """
    breaker, current_time, probing = Breaker("x", SETTINGS), 0.0, False
    for number, (step, wait) in enumerate(steps):
        current_time += wait
        if step == "ask":
            probing = probing or (
                breaker.is_open() and breaker.admit_or_delay(current_time, "new") is None
            )
        elif step == "fail":
            breaker.record_failure(current_time, str(number))
            probing = False
        else:
            breaker.record_success()
            probing = False
    if not probing:
        assert (
            breaker.admit_or_delay(current_time + SETTINGS.max_reset_timeout_seconds, "new") is None
        )
    breaker.record_success()
    assert breaker.admit_or_delay(current_time, "new") is None


class UnstableProvider:
    """A provider that fails, then hangs, then answers."""

    name = "moody"
    key_window = 3600.0

    def __init__(self) -> None:
        self.hangs = False
        self.fails = True

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        if self.hangs:
            await asyncio.Event().wait()
        return Unknown("no") if self.fails else Succeeded("r", 1, request.currency)

    look_up = cancel = send


class UnverifyingProvider(UnstableProvider):
    """A provider that answers everything except verifications."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False

    async def verify(self, _bank_account_token: str, _currency: str) -> Unknown:
        return Unknown("no")


async def keep_lease(_item: object) -> bool:
    """No other process takes anything over."""
    return True


async def call(
    gateway: ProviderGateway, operation: Charge | DestinationVerification, action: NextAction
) -> ProviderOutcome | NotCalled:
    """Calls the provider as the worker does."""
    if operation.kind is KindName.CHARGE:
        return await gateway.call(operation, action, default_circuit(action), charge_kind.perform)
    return await gateway.call(
        operation, action, verification_kind.circuit(action), verification_kind.perform
    )


def some_charge() -> Charge:
    """A charge with a lease of an hour."""
    return Charge(
        operation_id="c",
        checkout_id="c",
        caller="t",
        owner="t",
        attempt_number=1,
        provider="moody",
        provider_key="k",
        currency="EUR",
        payment_token="t",
        payment_method_type="CARD",
        orders=(),
        lease_token=1,
        lease_deadline=asyncio.get_running_loop().time() + 3600,
        traceparent="",
        context=current_context(),
    )


class PartlyFailingProvider:
    """A provider that fails one kind of call, and answers the other."""

    name = "moody"
    key_window = 3600.0

    def __init__(self, failing: NextAction) -> None:
        self._failing_action = failing

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        return self._outcome(NextAction.SEND, request)

    async def look_up(self, request: ChargeRequest) -> ChargeOutcome:
        return self._outcome(NextAction.LOOK_UP, request)

    cancel = look_up

    def _outcome(self, action: NextAction, request: ChargeRequest) -> ChargeOutcome:
        return (
            Unknown("no") if action is self._failing_action else Succeeded("r", 1, request.currency)
        )


@pytest.mark.parametrize(
    ("failing", "answered"),
    [
        (NextAction.SEND, NextAction.LOOK_UP),
        (NextAction.SEND, NextAction.CANCEL),
        (NextAction.LOOK_UP, NextAction.SEND),
    ],
)
def test_sends_and_lookups_have_separate_circuits(
    failing: NextAction, answered: NextAction
) -> None:
    """Failing sends block no lookup and no cancellation, and vice versa; answers of one kind do not
    close the circuit of the other.
    """

    async def main() -> None:
        execute = ProviderGateway(
            {"moody": PartlyFailingProvider(failing)},
            keep_lease,
            limits_of=lambda _: CallLimits(timeout_seconds=30, max_calls=5),
            breaker_settings=BreakerSettings(
                failure_threshold=1, reset_timeout_seconds=3600, max_reset_timeout_seconds=3600
            ),
        )
        charge = some_charge()
        assert isinstance(await call(execute, charge, failing), Unknown)
        for _ in range(2):
            assert isinstance(await call(execute, charge, answered), Succeeded)
            assert isinstance(await call(execute, charge, failing), NotCalled)
        assert execute.is_circuit_open("moody") == (failing is NextAction.SEND)

    asyncio.run(main())


def test_failing_verifications_block_no_payout() -> None:
    """Failing verifications, through any call, block no send and no lookup."""

    async def main() -> None:
        provider = UnverifyingProvider()
        execute = ProviderGateway(
            {"moody": provider},
            keep_lease,
            limits_of=lambda _: CallLimits(timeout_seconds=30, max_calls=5),
            breaker_settings=BreakerSettings(
                failure_threshold=1, reset_timeout_seconds=3600, max_reset_timeout_seconds=3600
            ),
        )
        account = DestinationVerification(
            operation_id="d",
            caller="t",
            attempt_number=1,
            provider="moody",
            provider_key="",
            lease_token=1,
            traceparent="",
            context=current_context(),
            lease_deadline=asyncio.get_running_loop().time() + 3600,
            maybe_sent=True,
            currency="EUR",
            bank_account_token="ba",
            state=DestinationState.PENDING_VERIFICATION,
        )
        assert isinstance(await call(execute, account, NextAction.SEND), Unknown)
        for step in (NextAction.SEND, NextAction.LOOK_UP):
            assert isinstance(await call(execute, account, step), NotCalled)
            assert isinstance(await call(execute, some_charge(), step), Succeeded)

    asyncio.run(main())


def test_a_cancelled_probe_is_replaced_by_the_next_call() -> None:
    """When the call that is the probe is cancelled, the next one becomes the probe."""

    async def main() -> None:
        provider = UnstableProvider()
        execute = ProviderGateway(
            {"moody": provider},
            keep_lease,
            limits_of=lambda _: CallLimits(timeout_seconds=30, max_calls=5),
            breaker_settings=BreakerSettings(
                failure_threshold=1, reset_timeout_seconds=0.0, max_reset_timeout_seconds=0.0
            ),
        )
        charge = some_charge()
        assert isinstance(await call(execute, charge, NextAction.SEND), Unknown)
        provider.hangs = True
        probe = asyncio.ensure_future(call(execute, charge, NextAction.SEND))
        await asyncio.sleep(0)
        assert isinstance(await call(execute, charge, NextAction.SEND), NotCalled)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        provider.hangs = provider.fails = False
        assert isinstance(await call(execute, charge, NextAction.SEND), Succeeded)

    asyncio.run(main())
