"""What is done with a charge that does not come on: steps, last resorts, retry policies."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import product
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick_core.payable import DestinationState
from tallystick_core.payment import Status, next_step
from tallystick_core.payout import AT_REST, PayoutState
from tallystick_core.provider import FinalNotFound, NotSent, Succeeded, Trouble, Unknown
from tallystick_core.recovery import Resort, Step, resort
from tallystick_server.payment.charge import Charge, ChargedOrder
from tallystick_server.payout.destination import Unverified
from tallystick_server.payout.payout import Payout
from tallystick_server.payout.prepare import prepared
from tallystick_server.payout.standing import Standing
from tallystick_server.payout.watch import Watch
from tallystick_server.runtime.operator import parse_dead_letter_id
from tallystick_server.runtime.postpone import Postpone, Troubled, troubled
from tallystick_server.runtime.retry import DEFAULTS, Policies, Policy, Strategy, parse_policy
from tallystick_server.runtime.telemetry import current_context
from tallystick_storage.database import DataRefused
from tallystick_storage.due import Again
from tallystick_storage.payout.payouts import Look

BOUNDED = [strategy for strategy in Strategy if strategy is not Strategy.CANCEL]


SWITCHES = ("answered", "ending", "maybe_sent", "looking", "key_honoured")


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("values", [dict(zip(SWITCHES, values, strict=True)) for values in product([False, True], repeat=len(SWITCHES))], ids=str)
def test_nothing_is_sent_that_may_have_been_answered_or_forgotten(status: Status, values: dict[str, bool]) -> None:
    """K3: a demand is sent only while it is EXECUTING, unanswered, wanted, not given up, and its key surely honoured; a charged order is only settled."""
    step = next_step([status], **values)
    if status is Status.SUCCESS:
        assert step is Step.SETTLE
    elif status is Status.NOT_STARTED:
        assert step is (Step.GIVE_UP if values["ending"] and not values["answered"] and not values["maybe_sent"] else Step.RISK)
    elif values["answered"]:
        assert step is Step.JUDGE
    elif values["ending"]:
        assert step is (Step.CANCEL if values["maybe_sent"] or status is Status.PENDING else Step.GIVE_UP)
    elif status is not Status.EXECUTING or values["looking"] or not values["key_honoured"]:
        assert step is Step.LOOK_UP
    else:
        assert step is Step.SEND


def in_hand(state: PayoutState, *, looking: bool, age: float, settled: bool = False) -> Payout:
    return Payout(
        demand_id="p-1", caller="c", number=1, provider="sandbox", provider_key="k", lease_token=1, lease_deadline=inf, traceparent="",
        context=current_context(), age=age, looking=looking, payout_id="1", seller_account="s", amount=2, fee=1, reserve=0, currency="EUR",
        payout_destination_id="d", bank_account_token="ba_ok", standing=Standing(2, state, settled), message=payout_pb2.Payout(),
    )  # fmt: skip


@pytest.mark.parametrize(("state", "looking", "age"), list(product(PayoutState, [False, True], [0.0, 39.9, 40.0])))
def test_a_payout_is_sent_only_while_its_key_is_surely_honoured(state: PayoutState, looking: bool, age: float) -> None:
    """K3: a payout is sent only while it is SUBMITTING, sending was not given up, and its key lasts longer than the lease; at rest it is only settled."""
    step = in_hand(state, looking=looking, age=age).step(0.0, key_window=100.0, lease=60.0)
    if state in AT_REST:
        assert step is Step.SETTLE
    elif state in (PayoutState.CREATED, PayoutState.AWAITING_APPROVAL, PayoutState.READY):
        assert step is Step.PREPARE
    else:
        assert (step is Step.SEND) == (state is PayoutState.SUBMITTING and not looking and age < 40.0)
        assert step in (Step.SEND, Step.LOOK_UP)


@pytest.mark.parametrize(
    ("destination", "ends"), [(DestinationState.VERIFIED, []), (DestinationState.DISABLED, ["CANCELLED"]), (DestinationState.UNUSABLE, ["CANCELLED"])]
)
def test_nothing_waits_for_a_destination_that_has_ended(destination: DestinationState, ends: list[str]) -> None:
    """A payout whose destination ended while its money was being held is CANCELLED, be it for a second person or to be sent."""
    created = in_hand(PayoutState.CREATED, looking=False, age=0.0)
    for thresholds, way in (({"EUR": 1}, ["AWAITING_APPROVAL"]), ({}, ["READY"])):
        move = prepared(created, None, destination, thresholds)
        states = [turn.standing.state for turn in move.turns]
        assert states == [*way, *(ends or ["SUBMITTING"] * (way == ["READY"]))]
        assert move.waits == (states == ["AWAITING_APPROVAL"])


def test_what_cannot_be_recorded_is_watched_on() -> None:
    """One payout whose answer cannot be stored is looked at again when its policy says, and raises nothing that would keep others from it."""

    class Provider:
        async def ask(self, _item: Payout, _step: Step) -> Succeeded:
            return Succeeded("tr", 1, "EUR")

    async def record(_item: Payout, _outcome: object) -> None:
        raise DataRefused("23514", "payout_check", "it cannot be")

    watch = Watch(None, Provider(), Policies(), record, record, lambda _: True)  # type: ignore[arg-type]
    look = asyncio.run(watch.look(in_hand(PayoutState.PAID, looking=False, age=0.0), 3))
    assert look == Look("1", 86_400.0, 3)


@pytest.mark.parametrize(("trouble", "maybe_sent"), list(product(Trouble, [False, True])))
def test_only_what_was_surely_not_sent_is_given_up(trouble: Trouble, maybe_sent: bool) -> None:
    """A demand fails for want of tries only if nothing ever reached the provider; what may have been charged is looked up, and sent again by turns."""
    last = resort(trouble, maybe_sent=maybe_sent)
    assert (last is Resort.FAIL) == (trouble is Trouble.NOT_SENT and not maybe_sent)
    assert (last is Resort.LOOK_UP) == (
        trouble in {Trouble.NO_ANSWER, Trouble.SERVER_ERROR, Trouble.BUSY, Trouble.FORBIDDEN} or (trouble is Trouble.NOT_SENT and maybe_sent)
    )
    assert (last is Resort.GO_ON) == (trouble in {Trouble.NOT_FOUND, Trouble.UNANSWERED})


@given(
    st.sets(st.sampled_from(Status), min_size=1), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_nothing_is_sent_that_must_not_be(
    statuses: set[Status], answered: bool, ending: bool, maybe_sent: bool, looking: bool, honoured: bool
) -> None:
    """Whatever the orders of a charge are: it is never sent when it is cancelled or has expired, past its key's window, or before risk has passed it."""
    step = next_step(statuses, answered=answered, ending=ending, maybe_sent=maybe_sent, looking=looking, key_honoured=honoured)
    if answered or ending or not honoured or statuses != {Status.EXECUTING}:
        assert step is not Step.SEND
    if maybe_sent or answered or Status.PENDING in statuses:
        assert step is not Step.GIVE_UP or statuses == {Status.NOT_STARTED}


@given(st.booleans(), st.integers(0, 2), st.floats(0, 200))
def test_past_the_keys_window_only_what_was_surely_never_sent_is_sent(maybe_sent: bool, not_found: int, age: float) -> None:
    """K3: a charge is sent while its key is honoured, and later only if it was never sent and its provider has said that it does not know it."""
    order = ChargedOrder("o-1", 2, Status.EXECUTING, "b", "s", 5, 1, payment_pb2.PaymentOrder())
    charge = charge_in_hand(orders=(order,), maybe_sent=maybe_sent, not_found=not_found, age=age)
    step = charge.step(0.0, key_window=100.0, lease=60.0)
    assert (step is Step.SEND) == (age < 40.0 or (not maybe_sent and not_found > 0))


@given(st.floats(-10, 10), st.booleans(), st.booleans(), st.floats(0, 200), st.sampled_from([Status.NOT_STARTED, Status.EXECUTING, Status.PENDING]))
def test_a_charge_that_is_not_wanted_is_not_sent(to_expiry: float, cancelled: bool, maybe_sent: bool, age: float, status: Status) -> None:
    """A charge that was cancelled or has expired is given up if it surely was not sent, else its provider is asked to cancel it: never SEND."""
    order = ChargedOrder("o-1", 2, status, "b", "s", 5, 1, payment_pb2.PaymentOrder())
    charge = charge_in_hand(orders=(order,), expires_at=to_expiry, cancelled=cancelled, maybe_sent=maybe_sent, age=age)
    step = charge.step(0.0, key_window=100.0, lease=60.0)
    if status is Status.NOT_STARTED:
        assert step in (Step.RISK, Step.GIVE_UP)
    elif cancelled or (to_expiry <= 0 and status is Status.EXECUTING):
        assert step is (Step.CANCEL if maybe_sent or status is Status.PENDING else Step.GIVE_UP)
    else:
        assert (step is Step.SEND) == (status is Status.EXECUTING and age + 60.0 < 100.0)


@pytest.mark.parametrize("trouble", [Trouble.SERVER_ERROR, Trouble.NO_ANSWER, Trouble.BUSY, Trouble.FORBIDDEN])
def test_look_up_and_sending_take_turns(trouble: Trouble) -> None:
    """When sending has failed too often the provider is asked at once what became of the charge; when it does not say, the charge is sent again."""
    postpone = postponing(Policies({("", Trouble.UNANSWERED): Policy(Strategy.FIXED, 7, 7, 2)}))
    exhausted = charge_in_hand(maybe_sent=True, tries=dict.fromkeys(Trouble, 1000))
    ask = postpone._decide(Troubled(exhausted, trouble, "", Step.SEND), 0.0)
    assert isinstance(ask, Again)
    assert (ask.looking, ask.delay, ask.sent) == (True, 0.0, True)
    for silent in (Trouble.NOT_FOUND, Trouble.UNANSWERED):
        again = postpone._decide(Troubled(replace(exhausted, looking=True), silent, "", Step.LOOK_UP, not_found=silent is Trouble.NOT_FOUND), 0.0)
        assert isinstance(again, Again)
        assert (again.looking, again.sent, again.not_found) == (False, False, int(silent is Trouble.NOT_FOUND))
        assert again.delay == 7 if silent is Trouble.UNANSWERED else (again.delay or 0) >= 150
    past = postpone._decide(Troubled(exhausted, Trouble.UNRESOLVED, "", Step.LOOK_UP), 0.0)
    assert past is Resort.SET_ASIDE


@pytest.mark.parametrize("trouble", [Trouble.NO_ANSWER, Trouble.SERVER_ERROR])
def test_a_charge_that_gets_no_answer_is_soon_looked_up(trouble: Trouble) -> None:
    """By the default policies a charge whose sends get no answer is looked up after a few of them, which is within a minute and their time-outs."""
    postpone, waited, tries = postponing(Policies()), 0.0, 0
    while True:
        again = postpone._decide(Troubled(charge_in_hand(maybe_sent=True, tries={trouble: tries}), trouble, "", Step.SEND), 0.0)
        assert isinstance(again, Again)
        if again.looking:
            break
        waited, tries = waited + (again.delay or 0.0), tries + 1
    assert tries <= 5
    assert waited <= 60


def test_a_bank_account_is_asked_about_for_as_long_as_nobody_answers() -> None:
    """To ask whether an account can be paid to is harmless, and no key is forgotten: however often there was no answer, it is no dead letter."""
    account = Unverified(
        demand_id="d-1", caller="t", number=1, provider="p", provider_key="", lease_token=1, lease_deadline=0.0, traceparent="", context=current_context(),
        age=1e9, maybe_sent=True, tries=dict.fromkeys(Trouble, 1000), payout_destination_id="1", currency="EUR", bank_account_token="ba_ok",
        state=DestinationState.PENDING_VERIFICATION,
    )  # fmt: skip
    postpone: Postpone[Unverified, None] = Postpone(None, Policies(), "destinations", None)  # type: ignore[arg-type]
    answers: list[NotSent | Unknown] = [Unknown("", Trouble.SERVER_ERROR), Unknown(""), NotSent("")]
    for step, silent in product((Step.SEND, Step.LOOK_UP), answers):
        trouble = troubled(account, silent, step, key_honoured=account.key_honoured(86_400.0, 60.0))
        assert trouble is not None
        again = postpone._decide(trouble, 0.0)
        assert isinstance(again, Again)
        assert again.looking == (step is Step.SEND)


@given(st.floats(0, 100), st.integers(1, 5), st.integers(0, 8), st.none() | st.floats(0, 200))
def test_not_found_is_proof_only_by_the_providers_own_rule(seconds: float, times: int, said: int, since_sent: float | None) -> None:
    """It is proof if the provider said it often enough, late enough after the charge may last have been sent; never where that is not known."""
    assert FinalNotFound(seconds, times).proves(said, since_sent) == (since_sent is not None and since_sent >= seconds and said >= times)


@given(st.sampled_from(BOUNDED), st.floats(0.01, 100), st.floats(0.01, 1000), st.integers(1, 50), st.integers(1, 60), st.text(max_size=20))
def test_waits_are_bounded_and_repeatable(strategy: Strategy, first: float, longest: float, most: int, tries: int, seed: str) -> None:
    """E3: never more tries than allowed, never a longer wait than allowed; the same seed waits the same."""
    policy = Policy(strategy, first, longest, most)
    delay = policy.delay(tries, seed)
    assert (delay is None) == (tries >= most)
    if delay is not None:
        assert 0 <= delay <= max(first, longest)
        assert delay == policy.delay(tries, seed)


def test_each_strategy_waits_as_it_says() -> None:
    """Immediate at once, fixed the same, incremental a step more, exponential the double less a share by chance, cancel never."""
    assert [Policy(Strategy.IMMEDIATE, tries=9).delay(n, "") for n in (1, 2, 3)] == [0, 0, 0]
    assert [Policy(Strategy.FIXED, 5, tries=9).delay(n, "") for n in (1, 2, 3)] == [5, 5, 5]
    assert [Policy(Strategy.INCREMENTAL, 5, 12, 9).delay(n, "") for n in (1, 2, 3)] == [5, 10, 12]
    doubled = [Policy(Strategy.EXPONENTIAL, 4, 30, 9).delay(n, "s") or 0 for n in (1, 2, 3, 4, 5)]
    assert all(full / 2 <= delay <= full for delay, full in zip(doubled, (4, 8, 16, 30, 30), strict=True))
    assert len({Policy(Strategy.EXPONENTIAL, 4, 30, 9).delay(2, seed) for seed in map(str, range(20))}) == 20
    assert Policy(Strategy.CANCEL).delay(1, "") is None


@pytest.mark.parametrize("tries", [1_024, 1_025, 10**9])
def test_policies_without_a_bound_of_tries_never_overflow(tries: int) -> None:
    """However often something was tried, its next wait is a number of seconds, at most the longest of its policy."""
    for policy in (
        *(Policy(strategy, 2, 300, None) for strategy in Strategy),
        *DEFAULTS.values(),
        Policy(Strategy.EXPONENTIAL, 604_800, 604_800, None),
    ):
        delay = policy.delay(tries, "s")
        assert delay is None or 0 <= delay <= max(policy.longest, policy.first)


def test_a_provider_may_have_policies_of_its_own() -> None:
    """The provider's own policy goes before the one for all, and that before the built-in."""
    own, general = Policy(Strategy.IMMEDIATE, tries=2), Policy(Strategy.FIXED, 1, 1, 3)
    policies = Policies({("bank", Trouble.BUSY): own, ("", Trouble.BUSY): general})
    assert policies.of("bank", Trouble.BUSY) is own
    assert policies.of("sandbox", Trouble.BUSY) is general
    assert policies.of("bank", Trouble.NOT_SENT) is DEFAULTS[Trouble.NOT_SENT]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("cancel", Policy(Strategy.CANCEL)),
        ("immediate:3", Policy(Strategy.IMMEDIATE, tries=3)),
        ("fixed:0.5:3", Policy(Strategy.FIXED, 0.5, 0.5, 3)),
        ("incremental:1:10:0", Policy(Strategy.INCREMENTAL, 1, 10, None)),
        ("exponential:2:300:12", Policy(Strategy.EXPONENTIAL, 2, 300, 12)),
    ],
)
def test_a_policy_is_read_as_it_is_written(text: str, policy: Policy) -> None:
    """Each form gives its strategy, seconds and tries; 0 tries are no bound."""
    parsed = parse_policy(text)
    assert [parsed.delay(n, "x") for n in range(1, 15)] == [policy.delay(n, "x") for n in range(1, 15)]
    assert parsed.strategy is policy.strategy


@pytest.mark.parametrize(
    "text", ["", "never", "fixed", "fixed:1", "fixed:x:1", "fixed:-1:1", "fixed:1:1.5", "fixed:nan:1", "immediate:1:2", "cancel:1", "fixed:1e9:1"]
)
def test_a_policy_that_cannot_be_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError):  # noqa: PT011 - any
        parse_policy(text)


_ORDER = ChargedOrder("o-1", 2, Status.EXECUTING, "b", "s", 100, 0, payment_pb2.PaymentOrder())


def charge_in_hand(**values: Any) -> Charge:
    """A charge that was accepted just now, but for what is given."""
    given: dict[str, Any] = {
        "demand_id": "o-1", "checkout_id": "c-1", "caller": "t", "owner": "t", "number": 1, "provider": "p", "provider_key": "k", "currency": "EUR", "payment_token": "t",
        "payment_method_type": "CARD", "orders": (_ORDER,), "lease_token": 1, "lease_deadline": 0.0, "traceparent": "", "context": current_context(), **values,
    }  # fmt: skip
    return Charge(**given)


def postponing(policies: Policies) -> Postpone[Charge, None]:
    return Postpone(None, policies, "charges", None)  # type: ignore[arg-type]


def test_one_kind_of_trouble_does_not_use_up_the_tries_of_another() -> None:
    """After three timeouts a first 503 is tried again as a first one: each kind of trouble has a count of its own."""
    charge = charge_in_hand(tries={Trouble.NO_ANSWER: 3})
    decided = postponing(Policies())._decide(Troubled(charge, Trouble.SERVER_ERROR, "503", Step.SEND), 0.0)
    assert isinstance(decided, Again)
    assert not decided.looking
    assert decided.tries == {"NO_ANSWER": 3, "SERVER_ERROR": 1}
    exhausted = charge_in_hand(tries={Trouble.SERVER_ERROR: 3})
    decided = postponing(Policies())._decide(Troubled(exhausted, Trouble.SERVER_ERROR, "503", Step.SEND), 0.0)
    assert isinstance(decided, Again)
    assert decided.looking


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_a_retry_after_is_obeyed(wait: float, asked: float) -> None:
    """A charge is not taken up again before the provider wants to hear of it, nor before its policy says."""
    charge = charge_in_hand()
    postpone = postponing(Policies({("p", Trouble.BUSY): Policy(Strategy.FIXED, wait, wait, 5)}))
    decided = postpone._decide(Troubled(charge, Trouble.BUSY, "429", Step.SEND, retry_after=asked), 0.0)
    assert isinstance(decided, Again)
    assert decided.delay == max(wait, asked)


@pytest.mark.parametrize("trouble", [Trouble.UNRESOLVED, Trouble.WAITING, Trouble.NO_ANSWER, Trouble.HELD_BACK])
@pytest.mark.parametrize(("now", "wait"), [(0.0, 5.0), (5.5, 0.0)])
def test_a_charge_is_taken_up_when_its_time_is_up(trouble: Trouble, now: float, wait: float) -> None:
    """No wait goes past the time of a payment; where that passed while the provider answered, the charge is due at once."""
    postpone = postponing(Policies({("p", one): Policy(Strategy.FIXED, 600, 600, 9) for one in Trouble}))
    charge = charge_in_hand(look_by=5.0, maybe_sent=True)
    retry_after = 600.0 if trouble is Trouble.HELD_BACK else 0.0
    decided = postpone._decide(Troubled(charge, trouble, "", Step.LOOK_UP, retry_after), now)
    assert isinstance(decided, Again)
    assert decided.delay == wait


@pytest.mark.parametrize("subject", ["charges-o-", "payouts-", "payoutDestinations-"])
def test_each_dead_letter_can_be_named(subject: str) -> None:
    """An operator can name the dead letter of whatever has the longest id that a caller may give, also the hundredth of it."""
    dead_letter_id = f"{subject}{64 * 'a'}-100"
    assert parse_dead_letter_id(dead_letter_id) == dead_letter_id
