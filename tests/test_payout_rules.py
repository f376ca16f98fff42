"""The rules of pay-out: states, fingerprints, made ids, what answers mean and what is booked for them, what can be paid."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.batch import NewBatch, made_payout_id, parse_batch_id, run_id
from tallystick_core.booking import Kind, Line
from tallystick_core.identifier import is_id, refuse_card_number
from tallystick_core.ledger import check_balanced
from tallystick_core.money import MAX_AMOUNT
from tallystick_core.payable import (
    DESTINATION_MOVES,
    DESTINATION_VERBS,
    ENDED,
    Destination,
    DestinationHappening,
    DestinationState,
    Funds,
    Limit,
    Terms,
    account_refused,
    amount_to_pay,
    move_destination,
    payable,
    require_approvable,
)
from tallystick_core.payout import (
    AT_REST,
    CAPTURED,
    GIVEN_BACK,
    HELD,
    MAYBE_SENT,
    MOVES,
    VERBS,
    Happening,
    NewDestination,
    NewPayout,
    PayoutState,
    first_difference,
    hold_failure,
    move,
    needs_approval,
    parse_payout_id,
    payout_demand,
    require_second_person,
)
from tallystick_core.provider import (
    Declined,
    FailureReason,
    InTransit,
    NotSent,
    PayoutFailure,
    PayoutOutcome,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
    provider_key,
)
from tallystick_core.refusal import Reason, Refused
from tallystick_core.transfer import Fact, Fit, Known, Transfer, Verdict, facts, judge

PAYOUT = NewPayout("po-1", "dev", "shop", "seller", 1000, "EUR")
LATER = {  # money.md: what may follow each state
    "CREATED": {"AWAITING_APPROVAL", "READY", "FAILED", "CANCELLED"},
    "AWAITING_APPROVAL": {"READY", "REJECTED", "CANCELLED"},
    "READY": {"SUBMITTING", "CANCELLED"},
    "SUBMITTING": {"SUBMITTED", "IN_TRANSIT", "PAID", "FAILED"},
    "SUBMITTED": {"IN_TRANSIT", "PAID", "FAILED"},
    "IN_TRANSIT": {"PAID", "FAILED"},
    "PAID": {"RETURNED"},
}


@pytest.mark.parametrize(("state", "happening"), list(itertools.product(PayoutState, Happening)))
def test_every_pair_is_in_the_table_or_refused_by_name(state: PayoutState, happening: Happening) -> None:
    """The table is total: what is not in it is STATE_FORBIDS with state and verb."""
    if (state, happening) in MOVES:
        assert move(state, happening) is MOVES[state, happening]
        return
    with pytest.raises(Refused) as refused:
        move(state, happening)
    assert refused.value.reason is Reason.STATE_FORBIDS
    assert refused.value.metadata == {"state": state, "verb": VERBS[happening].name}
    assert refused.value.message == f"The payout is {state} and cannot be {VERBS[happening].participle}."


@pytest.mark.parametrize("state", PayoutState)
def test_each_state_is_followed_by_just_those_it_may_be(state: PayoutState) -> None:
    """The states after each state are the documented ones; only PAID moves once it is at rest, and no state is lost on the way."""
    after = {to for (before, _), to in MOVES.items() if before is state and to is not state}
    assert after == {PayoutState(name) for name in LATER.get(state, set())}
    assert state in AT_REST or after
    assert not (state in AT_REST - {PayoutState.PAID} and after)


def test_what_is_decided_and_what_is_unknown_never_fails_a_payout() -> None:
    """An unknown answer, or one that surely was not sent, changes no state; nothing that may have been sent is cancelled or rejected."""
    assert all(to is before for (before, what), to in MOVES.items() if what in (Happening.UNKNOWN, Happening.NOT_SENT))
    ended = {PayoutState.CANCELLED, PayoutState.REJECTED}
    unsent = {PayoutState.CREATED, PayoutState.AWAITING_APPROVAL, PayoutState.READY}
    assert {before for (before, _), to in MOVES.items() if to in ended and before is not to} == unsent
    assert {before for before, what in MOVES if what is Happening.GIVEN_UP} == {PayoutState.SUBMITTING}


def test_every_state_says_what_becomes_of_its_money() -> None:
    """O1: each state but CREATED has its money held, captured or given back, and no move skips the hold or gives captured money back."""
    parts = [frozenset({PayoutState.CREATED}), HELD, CAPTURED, GIVEN_BACK]
    assert sorted(state for part in parts for state in part) == sorted(PayoutState)
    for (before, _), to in MOVES.items():
        if before in CAPTURED:
            assert to in CAPTURED
        if to in CAPTURED and before not in CAPTURED:
            assert before in HELD
        if before in GIVEN_BACK:
            assert to is before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seller_account", "x"),
        ("amount", 1),
        ("amount", None),
        ("currency", "USD"),
        ("payout_destination_id", "d"),
        ("payout_id", "x"),
        ("owner", "x"),
    ],
)
def test_another_value_is_another_fingerprint_and_is_named(field: str, value: object) -> None:
    """K1: any other value changes the fingerprint, and the first that differs is named; whose it is, is no field of the request."""
    other = replace(PAYOUT, **{field: value})  # type: ignore[arg-type]
    assert other.fingerprint() != PAYOUT.fingerprint()
    assert first_difference(other, PAYOUT) == ("payout_id" if field == "owner" else field)


def test_everything_payable_is_a_request_of_its_own() -> None:
    """K1: a payout without amount is told apart from one of any amount, and what differs first is named."""
    everything = replace(PAYOUT, amount=None)
    assert everything.fingerprint() == replace(PAYOUT, amount=None).fingerprint() != PAYOUT.fingerprint()
    assert first_difference(replace(everything, amount=1000, currency="USD"), everything) == "amount"


def test_destinations_and_batches_have_fingerprints_of_all_their_values() -> None:
    """K1: any other value of a destination or a batch changes its fingerprint."""
    destination = NewDestination("d-1", "dev", "shop", "seller", "EUR", "tok", "x")
    changed = [replace(destination, **{name: "other"}) for name in NewDestination.__dataclass_fields__ if name != "caller"]
    batch = NewBatch("b-1", "dev", "shop", (PAYOUT, replace(PAYOUT, payout_id="po-2")))
    others = [
        replace(batch, payout_batch_id="x"),
        replace(batch, owner="x"),
        replace(batch, payouts=(PAYOUT,)),
        NewBatch("b-1", "dev", "shop", (), "seller", "EUR"),
    ]
    others += [NewBatch("b-1", "dev", "shop", (), "", "EUR"), NewBatch("b-1", "dev", "shop", (), "", "USD")]
    for made in ([destination, *changed], [batch, *others]):
        assert len({one.fingerprint() for one in made}) == len(made)


def test_a_providers_key_names_the_payout_and_the_attempt() -> None:
    """money.md: the key is {environment}-p-{payout_id}-{attempt}."""
    assert provider_key("live", payout_demand("po-1"), 2) == "live-p-po-1-2"


def test_a_run_makes_the_same_ids_whoever_runs_it() -> None:
    """A cut-off has one run whatever the zone it is told in, a seller one payout in it; no made id looks like a card number, and no caller may take a run's."""
    cut_off = datetime(2025, 7, 1, 14, tzinfo=UTC)
    assert run_id("EUR", cut_off) == run_id("EUR", cut_off.astimezone(timezone(timedelta(hours=9)))) == "run-EUR-20250701T1400Z"
    made = {made_payout_id(run, f"s-{n}") for n in range(2_000) for run in ("b-1", run_id("EUR", cut_off), run_id("USD", cut_off))}
    assert len(made) == 6_000
    for text in made | {run_id("EUR", cut_off + timedelta(minutes=n)) for n in range(20_000)}:
        assert is_id(text)
        refuse_card_number(text, "payout_id")
    with pytest.raises(Refused) as refused:
        parse_batch_id("run-EUR-20250701T1400Z")
    assert refused.value.reason is Reason.FIELD_INVALID
    assert parse_batch_id("b-1") == "b-1"
    with pytest.raises(Refused) as refused:
        parse_payout_id(made_payout_id("run-EUR-20250701T1400Z", "s"))
    assert refused.value.reason is Reason.FIELD_INVALID
    assert parse_payout_id("po-1") == "po-1"


@given(st.integers(1, MAX_AMOUNT), st.integers(0, MAX_AMOUNT))
def test_a_second_person_is_needed_above_the_threshold_only(amount: int, threshold: int) -> None:
    """A payout needs approval just where its currency has a threshold and its amount is above it."""
    assert needs_approval(amount, "EUR", {"EUR": threshold}) == (amount > threshold)
    assert not needs_approval(amount, "USD", {"EUR": threshold})


def test_the_second_person_is_another() -> None:
    """The creator of a payout does not approve it."""
    require_second_person("finance", "dev")
    with pytest.raises(Refused) as refused:
        require_second_person("dev", "dev")
    assert refused.value.reason is Reason.SECOND_PERSON_REQUIRED


@pytest.mark.parametrize("reason", Reason)
def test_a_payout_fails_by_what_the_wallet_says_of_the_money(reason: Reason) -> None:
    """Only a wallet that has not the money, is not there or is frozen fails a payout; every other refusal leaves it where it is."""
    known = {"INSUFFICIENT_FUNDS": "INSUFFICIENT_FUNDS", "NOT_FOUND": "INSUFFICIENT_FUNDS", "STATE_FORBIDS": "WALLET_FROZEN"}
    assert hold_failure(reason) == known.get(reason)


# What answers mean

NET, FEE = 95, 5
_REFERENCES = st.sampled_from(["t1", "t2", "t3"])
_CURRENCIES = st.sampled_from(["EUR", "EUR", "EUR", "USD"])
_PAID = st.builds(Succeeded, _REFERENCES, st.sampled_from([NET, NET, NET, 90, 100]), _CURRENCIES)
_BACK = st.builds(Returned, _REFERENCES, st.sampled_from([NET, 50, 90, 200]), _CURRENCIES)
_OTHERS: list[PayoutOutcome] = [
    Submitted("t1"), InTransit("t1"), NotSent("x"), Unknown("x"), Declined(PayoutFailure.PROVIDER_DECLINED), Declined(FailureReason.INSUFFICIENT_FUNDS),
]  # fmt: skip
_ANSWERS = st.lists(st.one_of(_PAID, _BACK, st.sampled_from(_OTHERS)), max_size=8)


def _tell(known: Known, outcome: PayoutOutcome) -> tuple[Known, Verdict]:
    """What is known after an answer, moved by the table."""
    verdict = judge(known, outcome)
    state = known.state
    for happening in verdict.happenings:
        state = move(state, happening)
    return replace(known, state=state, transfers={**known.transfers, **{transfer.reference: transfer for transfer in verdict.transfers}}), verdict


def _tell_all(outcomes: list[PayoutOutcome], state: PayoutState = PayoutState.SUBMITTING) -> Known:
    known = Known(state, NET, "EUR")
    for outcome in outcomes:
        known, _ = _tell(known, outcome)
    return known


def _facts(known: Known) -> list[Fact]:
    return [fact for transfer in known.transfers.values() for fact in facts("po-1", "bank", "s", NET + FEE, FEE, transfer)]


@given(st.sampled_from(sorted(MAYBE_SENT)), _ANSWERS)
def test_whatever_a_provider_tells_is_judged_and_counts_once(state: PayoutState, outcomes: list[PayoutOutcome]) -> None:
    """H1, O2: no answer in no order leaves the table; each transfer told of is there once with the first amounts told; a repeat changes nothing, and one
    with other amounts is for a person."""
    transfers = {} if state not in CAPTURED else {"t1": Transfer("t1", NET, "EUR", Fit.AS_ASKED, *((NET, "EUR") if state == "RETURNED" else ()))}
    known = Known(state, NET, "EUR", transfers)
    for outcome in outcomes:
        before = known
        known, verdict = _tell(known, outcome)
        if verdict.transfers:
            assert isinstance(outcome, Succeeded | Returned)
            assert verdict.happenings
        for reference, transfer in before.transfers.items():
            now = known.transfers[reference]
            assert replace(now, returned_amount=None, returned_currency="") == replace(transfer, returned_amount=None, returned_currency="")
            assert transfer.returned_amount in (None, now.returned_amount)
        if isinstance(outcome, Succeeded | Returned):
            assert outcome.reference in known.transfers
            transfer = known.transfers[outcome.reference]
            first = (transfer.amount, transfer.currency) if isinstance(outcome, Succeeded) else (transfer.returned_amount, transfer.returned_currency)
            assert _tell(known, outcome) == (known, Verdict(contradicted=(outcome.amount, outcome.currency) != first))
    assert sum(transfer.fit in (Fit.AS_ASKED, Fit.LATE) for transfer in known.transfers.values()) <= 1
    assert (known.state in CAPTURED) == any(transfer.fit is Fit.AS_ASKED for transfer in known.transfers.values())


@given(_ANSWERS)
def test_what_is_booked_is_what_moved(outcomes: list[PayoutOutcome]) -> None:
    """L1, O2: each fact balances under a key of its own, the seller's lines are the wallet's change, and clearing owes just what the provider moved."""
    known = _tell_all(outcomes)
    made = _facts(known)
    assert len({(fact.kind, fact.cause_id) for fact in made}) == len(made)
    clearing: Counter[str] = Counter()
    for fact in made:
        check_balanced(fact.lines)
        assert sum(line.amount for line in fact.lines if line.account == "sellers/s" and line.currency == "EUR") == fact.seller_change
        assert all(line.amount for line in fact.lines)
        assert all(line.currency == "EUR" for line in fact.lines if line.account == "sellers/s")
        for line in fact.lines:
            clearing[line.currency] += line.amount if line.account == "payouts/bank/clearing" else 0
    for transfer in known.transfers.values():
        clearing[transfer.currency] -= transfer.amount
        clearing[transfer.returned_currency] += transfer.returned_amount or 0
    assert not any(clearing.values())


@given(
    st.permutations(
        [Submitted("t1"), InTransit("t1"), Succeeded("t1", NET, "EUR"), Returned("t1", 60, "EUR"), Unknown("x"), Succeeded("t1", NET, "EUR")]
    )
)
def test_the_order_in_which_a_payouts_story_is_told_makes_no_difference(outcomes: list[PayoutOutcome]) -> None:
    """H1: a payout that was paid and came back in part is RETURNED with the same facts, in whatever order and however often that is told."""
    known = _tell_all(outcomes)
    assert known.state is PayoutState.RETURNED
    assert known.transfers == {"t1": Transfer("t1", NET, "EUR", Fit.AS_ASKED, 60, "EUR")}
    assert [(fact.kind, fact.cause_id, fact.seller_change) for fact in _facts(known)] == [
        (Kind.PAYOUT, "po-1", -100),
        (Kind.PAYOUT_RETURN, "po-1", 60),
    ]


@pytest.mark.parametrize(
    ("outcomes", "state", "seller", "fits"),
    [
        ([Declined(PayoutFailure.PROVIDER_DECLINED)], "FAILED", [], []),
        ([Succeeded("t1", NET, "EUR")], "PAID", [-100], ["AS_ASKED"]),
        ([Declined(PayoutFailure.PROVIDER_DECLINED), Succeeded("t1", NET, "EUR")], "FAILED", [-100], ["LATE"]),
        ([Declined(PayoutFailure.PROVIDER_DECLINED), Returned("t1", NET, "EUR")], "FAILED", [-100, 95], ["LATE"]),
        ([Succeeded("t1", 90, "EUR")], "FAILED", [-90], ["MISMATCH"]),
        ([Succeeded("t1", NET, "USD")], "FAILED", [0], ["OTHER_CURRENCY"]),
        ([Succeeded("t1", NET, "EUR"), Succeeded("t2", NET, "EUR")], "PAID", [-100, -95], ["AS_ASKED", "TWICE"]),
        ([Succeeded("t1", NET, "EUR"), Succeeded("t2", NET, "EUR"), Returned("t2", NET, "EUR")], "PAID", [-100, -95, 95], ["AS_ASKED", "TWICE"]),
        ([Returned("t1", NET, "EUR")], "RETURNED", [-100, 95], ["AS_ASKED"]),
        ([Returned("t1", NET + 1, "EUR")], "PAID", [-100, 0], ["AS_ASKED"]),
        ([Returned("t1", NET, "USD")], "PAID", [-100, 0], ["AS_ASKED"]),
        ([Succeeded("t1", 90, "USD"), Returned("t1", 90, "USD")], "FAILED", [0, 0], ["OTHER_CURRENCY"]),
        ([Succeeded("t1", NET, "EUR"), Declined(PayoutFailure.PROVIDER_DECLINED), InTransit("t1")], "PAID", [-100], ["AS_ASKED"]),
    ],
)
def test_money_that_moved_always_counts(outcomes: list[PayoutOutcome], state: str, seller: list[int], fits: list[str]) -> None:
    """What an outside fact takes is debited and what it gives is credited, and the state tells the rest."""
    known = _tell_all(outcomes)
    assert known.state == state
    assert [fact.seller_change for fact in _facts(known)] == seller
    assert [transfer.fit for transfer in known.transfers.values()] == fits


@pytest.mark.parametrize("outcome", [*_OTHERS, Succeeded("t1", NET, "EUR"), Returned("t1", NET, "EUR")])
@pytest.mark.parametrize("state", sorted(set(PayoutState) - MAYBE_SENT))
def test_a_provider_tells_nothing_of_a_payout_that_it_never_got(state: PayoutState, outcome: PayoutOutcome) -> None:
    """An answer to a payout that was never sent is refused, and moves no money."""
    with pytest.raises(Refused) as refused:
        judge(Known(state, NET, "EUR"), outcome)
    assert refused.value.reason is Reason.STATE_FORBIDS


def test_only_a_return_gives_paid_money_back() -> None:
    """A paid payout that is told to have failed stays PAID and is for a person; a failure has the provider's reason, or another reason than pay-in's."""
    paid = _tell_all([Succeeded("t1", NET, "EUR")])
    assert judge(paid, Declined(PayoutFailure.PROVIDER_DECLINED)) == Verdict(contradicted=True)
    sent = Known(PayoutState.SUBMITTED, NET, "EUR")
    assert judge(sent, Declined(PayoutFailure.DESTINATION_REFUSED)).failure is PayoutFailure.DESTINATION_REFUSED
    assert judge(sent, Declined(FailureReason.BUYER_CANCELLED)).failure is PayoutFailure.PROVIDER_DECLINED
    assert judge(sent, Succeeded("t1", 1, "EUR")).failure is PayoutFailure.PROVIDER_MISMATCH


def test_a_payout_is_booked_with_its_fee() -> None:
    """money.md: PAID takes the amount from the seller, gives the platform its fee and clearing the rest; a return gives what came back, and no fee."""
    paid, back = facts("po-1", "bank", "s", 100, 5, Transfer("t1", 95, "EUR", Fit.AS_ASKED, 95, "EUR"))
    assert paid.lines == (Line("sellers/s", "EUR", -100), Line("payouts/bank/clearing", "EUR", 95), Line("platform/fees", "EUR", 5))
    assert back.lines == (Line("payouts/bank/clearing", "EUR", -95), Line("sellers/s", "EUR", 95))
    strange = facts("po-1", "bank", "s", 100, 5, Transfer("t1", 95, "USD", Fit.OTHER_CURRENCY))
    assert strange[0].lines == (Line("unapplied/bank", "USD", -95), Line("payouts/bank/clearing", "USD", 95))


# Where to, and how much


@pytest.mark.parametrize(("state", "happening"), list(itertools.product(DestinationState, DestinationHappening)))
def test_every_pair_of_a_destination_is_in_its_table_or_refused_by_name(state: DestinationState, happening: DestinationHappening) -> None:
    """The destinations' table is total, only a verified answer verifies, and nothing leaves UNUSABLE or DISABLED."""
    if (state, happening) in DESTINATION_MOVES:
        after = move_destination(state, happening)
        assert after is DESTINATION_MOVES[state, happening]
        assert after is state or state not in ENDED
        assert (after is DestinationState.VERIFIED) == (happening is DestinationHappening.VERIFIED)
        return
    with pytest.raises(Refused) as refused:
        move_destination(state, happening)
    assert refused.value.metadata == {"state": state, "verb": DESTINATION_VERBS[happening].name}


def test_a_destination_ends_when_its_account_is_at_fault() -> None:
    """Only a refusal of the account, or a return that is its fault, shows that a destination cannot be paid to any more."""
    assert account_refused(Declined(PayoutFailure.DESTINATION_REFUSED))
    assert account_refused(Returned("t1", 1, "EUR", "closed", account_refused=True))
    for outcome in (Declined(PayoutFailure.PROVIDER_DECLINED), Returned("t1", 1, "EUR"), Succeeded("t1", 1, "EUR"), Unknown("x")):
        assert not account_refused(outcome)


def test_only_a_destination_that_awaits_approval_can_be_approved() -> None:
    """A destination that has ended, or awaits no approval, is refused with STATE_FORBIDS."""
    for state, awaits in itertools.product(DestinationState, (True, False)):
        if awaits and state in (DestinationState.PENDING_VERIFICATION, DestinationState.VERIFIED):
            require_approvable(state, awaits_approval=True)
            continue
        with pytest.raises(Refused) as refused:
            require_approvable(state, awaits_approval=awaits)
        assert refused.value.reason is Reason.STATE_FORBIDS
        assert refused.value.metadata == {"state": state, "verb": "APPROVE"}
        why = "" if state in ENDED else ": it awaits no approval"
        assert refused.value.message == f"The destination is {state} and cannot be approved{why}."


_MINOR = st.integers(0, 20) | st.integers(0, 20) | st.integers(0, 2 * MAX_AMOUNT)  # small ones, so that limits are met exactly
_FUNDS = st.builds(
    lambda p, a, h, o, f: Funds(p, 0 if o else a, h, o, f), _MINOR, _MINOR, _MINOR, st.just(0) | _MINOR, st.sampled_from([False, False, False, True])
)
_TERMS = st.builds(Terms, *(st.just(0) | st.integers(0, 12),) * 3)
_USABLE = Destination(DestinationState.VERIFIED, waits=False)
_OTHERWISE = [None, *itertools.starmap(Destination, itertools.product(DestinationState, [False, True]))]
_DESTINATIONS = st.sampled_from([_USABLE] * 20 + _OTHERWISE)


@given(_FUNDS, _TERMS, _DESTINATIONS)
def test_what_can_be_paid_and_what_keeps_the_rest_is_all_there_is(funds: Funds, terms: Terms, destination: Destination | None) -> None:
    """Nothing is paid that breaks a term, and the payable amount with what each limit keeps is the whole wallet."""
    can = payable(funds, terms, destination)
    blocking = {limit: kept for limit, kept in can.shortfalls.items() if list(Limit).index(limit) >= list(Limit).index(Limit.MINIMUM_AMOUNT)}
    keeping = sum(can.shortfalls.get(limit, 0) for limit in (Limit.PENDING_FUNDS, Limit.HELD, Limit.RESERVE, Limit.LARGEST_AMOUNT))
    kept_by_blocks = set(blocking.values())
    assert len(kept_by_blocks) <= 1
    assert can.amount + keeping + sum(kept_by_blocks) == funds.pending + funds.available + funds.held
    assert can.shortfalls.get(Limit.OWED, 0) == funds.owed
    assert list(can.shortfalls) == [limit for limit in Limit if limit in can.shortfalls]
    if can.amount:
        assert terms.minimum_amount <= can.amount <= min(funds.available - terms.reserve, MAX_AMOUNT)
        assert can.net == can.amount - terms.fee > 0
        assert not funds.frozen
        assert destination == _USABLE
    else:
        assert can.net == 0
        assert blocking or funds.available <= terms.reserve


@pytest.mark.parametrize(
    ("funds", "terms", "destination", "limits"),
    [
        (Funds(available=100), Terms(), _USABLE, {}),
        (Funds(available=100), Terms(reserve=30), _USABLE, {"RESERVE": 30}),
        (Funds(available=20), Terms(reserve=30), _USABLE, {"RESERVE": 20}),
        (Funds(available=100), Terms(minimum_amount=101), _USABLE, {"MINIMUM_AMOUNT": 100}),
        (Funds(available=100), Terms(minimum_amount=100), _USABLE, {}),
        (Funds(available=100), Terms(fee=100), _USABLE, {"FEE": 100}),
        (Funds(available=100), Terms(fee=99), _USABLE, {}),
        (Funds(pending=7, held=8, owed=9), Terms(minimum_amount=5, fee=1), _USABLE, {"PENDING_FUNDS": 7, "HELD": 8, "OWED": 9}),
        (Funds(available=100, frozen=True), Terms(), None, {"FROZEN": 100, "NO_DESTINATION": 100}),
        (Funds(), Terms(), Destination(DestinationState.PENDING_VERIFICATION, waits=True), {"DESTINATION_UNVERIFIED": 0}),
        (Funds(available=1), Terms(), Destination(DestinationState.VERIFIED, waits=True), {"DESTINATION_WAITING": 1}),
        (Funds(available=1), Terms(), Destination(DestinationState.UNUSABLE, waits=False), {"DESTINATION_UNUSABLE": 1}),
        (Funds(available=1), Terms(), Destination(DestinationState.DISABLED, waits=False), {"DESTINATION_UNUSABLE": 1}),
        (Funds(available=MAX_AMOUNT + 5), Terms(), _USABLE, {"LARGEST_AMOUNT": 5}),
        (Funds(available=MAX_AMOUNT + 5, frozen=True), Terms(), _USABLE, {"LARGEST_AMOUNT": 5, "FROZEN": MAX_AMOUNT}),
    ],
)
def test_each_limit_names_what_it_keeps(funds: Funds, terms: Terms, destination: Destination | None, limits: dict[str, int]) -> None:
    """Each limit is told just where it holds, with how much it keeps by itself."""
    assert dict(payable(funds, terms, destination).shortfalls) == limits


@given(st.none() | st.integers(1, 25), _FUNDS, _TERMS, _DESTINATIONS)
def test_a_payout_is_accepted_just_where_it_can_be_paid(asked: int | None, funds: Funds, terms: Terms, destination: Destination | None) -> None:
    """What is accepted is what was asked for or all that can be paid, and leaves the reserve; everything else is refused by what stands against it."""
    can = payable(funds, terms, destination)
    try:
        amount = amount_to_pay(asked, funds, terms, destination)
    except Refused as refused:
        if refused.reason is Reason.AMOUNT_OUT_OF_RANGE:
            assert asked is not None
            assert asked < terms.minimum_amount or asked <= terms.fee
            return
        assert refused.metadata["limits"] == ",".join(can.shortfalls)
        nowhere = any(limit.endswith("DESTINATION") or limit.startswith("DESTINATION") for limit in can.shortfalls)
        expected = Reason.STATE_FORBIDS if funds.frozen else Reason.DESTINATION_UNUSABLE if nowhere else Reason.INSUFFICIENT_FUNDS
        assert refused.reason is expected
        assert funds.frozen or nowhere or (asked or 1) > can.amount
        return
    assert amount == (can.amount if asked is None else asked)
    assert amount - terms.fee > 0
    assert funds.available - amount >= terms.reserve
    assert amount >= terms.minimum_amount


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (9, "AMOUNT_OUT_OF_RANGE"),
        (10, "AMOUNT_OUT_OF_RANGE"),
        (11, "AMOUNT_OUT_OF_RANGE"),
        (12, None),
        (70, None),
        (71, "INSUFFICIENT_FUNDS"),
        (None, None),
    ],
)
def test_the_terms_hold_for_what_is_asked_for(asked: int | None, reason: str | None) -> None:
    """What is asked for is at least the minimum, more than the fee, and no more than what the reserve leaves."""
    funds = Funds(available=100)
    for terms in (Terms(minimum_amount=12, fee=10, reserve=30), Terms(minimum_amount=0, fee=11, reserve=30)):
        try:
            assert amount_to_pay(asked, funds, terms, _USABLE) == (asked or 70)
            assert reason is None
        except Refused as refused:
            assert refused.reason == reason
