"""Who may touch which seller: owners, their sellers, their destinations, and what operators decide."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest

from tallystick import Client, ClientSettings, TallystickError, new_order
from tallystick.event.v1 import event_pb2, event_service_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.wallet.v1 import wallet_pb2
from tallystick.wallet.v1 import wallet_service_pb2 as wb
from tallystick_core.caller import Caller, Role
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.wiring import Ports
from tallystick_server.wallet.handlers import WalletHandlers

from .banks import Bank
from .conftest import QUICK, Platform, eventually, fresh_database, serving, unique
from .test_payout import comes_to, destination, pay_out, reason_of, sell

_ROLES = {
    "checkout": ("market", {Role.TEAM}),
    "money": ("market", {Role.PAYOUTS}),
    "rival": ("", {Role.TEAM, Role.PAYOUTS}),
    "chief": ("", {Role.OPERATOR}),
    "second": ("", {Role.OPERATOR}),
    "platform": ("", {Role.SERVICE}),
    "stranger": ("", {Role.SERVICE}),
}
TOKENS = {name: f"token-of-{name}-aaaaaaaa" for name in _ROLES}
CALLERS = {TOKENS[name]: Caller(name, frozenset(roles), owner) for name, (owner, roles) in _ROLES.items()}
SETTINGS = Settings(
    retry=QUICK,
    sweep_interval=0.1,
    authentication="tokens",
    callers=CALLERS,
    service_token=TOKENS["platform"],
    payout_waiting_period=0,
    seller_check_interval=0,
    destination_approve_above={"EUR": 100_000},
)


@pytest.fixture(scope="module")
def market(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """All services, with a marketplace of two callers, a rival of it, and two operators."""
    folder: Path = tmp_path_factory.mktemp("market")
    with fresh_database(admin_url, folder) as known, serving(known, SETTINGS, ports=Ports(payout_providers={"sandbox": Bank()})) as running:
        yield running


def _client(platform: Platform, name: str) -> Iterator[Client]:
    with platform.client(TOKENS[name]) as client:
        yield client


@pytest.fixture(scope="module")
def checkout(market: Platform) -> Iterator[Client]:
    """Takes the marketplace's payments."""
    yield from _client(market, "checkout")


@pytest.fixture(scope="module")
def money(market: Platform) -> Iterator[Client]:
    """Pays the marketplace's sellers."""
    yield from _client(market, "money")


@pytest.fixture(scope="module")
def rival(market: Platform) -> Iterator[Client]:
    """Another marketplace."""
    yield from _client(market, "rival")


@pytest.fixture(scope="module")
def chief(market: Platform) -> Iterator[Client]:
    yield from _client(market, "chief")


@pytest.fixture(scope="module")
def second(market: Platform) -> Iterator[Client]:
    yield from _client(market, "second")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(TallystickError) as error:
        call()
    return reason_of(error)


def order_of(client: Client, seller: str, amount: str = "10.00") -> str:
    """A payment of one order, waited for; its id."""
    id_ = unique("c")
    client.create_payment(id_, [new_order(f"{id_}-1", "buyer-1", seller, amount, "EUR")], credit_card_info="tok_visa")
    return id_


def preview(client: Client, seller: str) -> pb.PreviewPayoutResponse:
    return client.payout.PreviewPayout(pb.PreviewPayoutRequest(seller_account=seller, currency="EUR"))


def register(client: Client, seller: str, id_: str = "") -> payout_pb2.PayoutDestination:
    id_ = id_ or unique("d")
    request = pb.CreatePayoutDestinationRequest(payout_destination_id=id_, seller_account=seller, currency="EUR", bank_account_token=id_)
    return client.payout.CreatePayoutDestination(request).payout_destination


def set_schedule(client: Client, seller: str, fee: str = "", minimum_amount: str = "", reserve: str = "") -> payout_pb2.PayoutSchedule:
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL
    request = pb.SetPayoutScheduleRequest(
        seller_account=seller, currency="EUR", interval=manual, fee=fee, minimum_amount=minimum_amount, reserve=reserve
    )
    return client.payout.SetPayoutSchedule(request).payout_schedule


def owner_of(client: Client, seller: str) -> str:
    return client.wallet.GetSeller(wb.GetSellerRequest(seller_account=seller)).seller.owner


def rows(market: Platform, table: str, seller: str) -> int:
    """How many rows of a table name the seller."""
    with psycopg.connect(market.databases.reader(table.partition(".")[0]).replace("+psycopg", "")) as connection:
        (count,) = connection.execute(f"select count(*) from {table} where seller_account = %s", [seller]).fetchone() or (0,)
        return int(count)


def test_callers_of_one_owner_share_what_they_make(checkout: Client, money: Client, chief: Client) -> None:
    """A seller that one caller of an owner sold for is paid by another, and each sees what the other made; ids are the owner's."""
    seller = sell(checkout, "20.00")
    assert owner_of(chief, seller) == "market"
    to = destination(money, seller)
    paid = pay_out(money, seller, "5.00", payout_destination_id=to)
    assert (paid.owner, paid.caller) == ("market", "money")
    comes_to(checkout, paid.payout_id, "PAID")
    assert [one.payout_id for one in checkout.pages(checkout.payout.ListPayouts, pb.ListPayoutsRequest(), "payouts") if one.seller_account == seller]
    assert preview(checkout, seller).available == "15.00"


def test_a_team_that_takes_payments_cannot_pay_out(checkout: Client, money: Client) -> None:
    """What moves money out needs the role payouts; what takes money in needs the role team."""
    seller = sell(checkout, "20.00")
    to = destination(money, seller)
    paid = pay_out(money, seller, "1.00")
    refused: list[Callable[[], object]] = [
        lambda: register(checkout, seller),
        lambda: pay_out(checkout, seller, "1.00"),
        lambda: set_schedule(checkout, seller),
        lambda: checkout.payout.DisablePayoutDestination(pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="x")),
        lambda: checkout.payout.CancelPayout(pb.CancelPayoutRequest(payout_id=paid.payout_id, reason="x")),
        lambda: checkout.payout.RetryPayout(pb.RetryPayoutRequest(payout_id=paid.payout_id, reason="x", request_id=unique("r"))),
        lambda: checkout.payout.CreatePayoutBatch(
            pb.CreatePayoutBatchRequest(payout_batch_id=unique("b"), run=pb.NewPayoutRun(seller_account=seller, currency="EUR"))
        ),
        lambda: order_of(money, seller),
    ]
    assert [refusal(call) for call in refused] == ["METHOD_FORBIDDEN"] * len(refused)


def test_another_owners_seller_cannot_be_touched(market: Platform, checkout: Client, money: Client, rival: Client) -> None:
    """Reads, payouts, schedules and runs of another owner's seller are NOT_FOUND, orders and destinations ID_TAKEN, and nothing is stored."""
    seller = sell(checkout, "500.00")
    good = destination(money, seller)
    run = pb.CreatePayoutBatchRequest(payout_batch_id=unique("b"), run=pb.NewPayoutRun(seller_account=seller, currency="EUR"))
    before = {table: rows(market, table, seller) for table in ("payout.payout", "payout.payout_destination", "payout.payout_schedule")}
    assert refusal(lambda: preview(rival, seller)) == "NOT_FOUND"
    assert refusal(lambda: set_schedule(rival, seller)) == "NOT_FOUND"
    assert refusal(lambda: rival.payout.GetPayoutSchedule(pb.GetPayoutScheduleRequest(seller_account=seller, currency="EUR"))) == "NOT_FOUND"
    assert refusal(lambda: register(rival, seller)) == "ID_TAKEN"
    assert refusal(lambda: pay_out(rival, seller, "500.00")) == "NOT_FOUND"
    assert refusal(lambda: rival.payout.CreatePayoutBatch(run)) == "NOT_FOUND"
    assert refusal(lambda: order_of(rival, seller)) == "ID_TAKEN"
    for call, field in ((register, "seller_account"), (order_of, "payment_orders[0].seller_account")):
        with pytest.raises(TallystickError, match=re.escape(f"{field} is taken: the seller belongs to another owner, since")) as error:
            call(rival, seller)
        assert "RequestSellerAssignment" in str(error.value)  # what to do
    assert {table: rows(market, table, seller) for table in before} == before
    paid = pay_out(money, seller, "500.00")
    assert paid.payout_destination_id == good
    comes_to(money, paid.payout_id, "PAID")


def test_a_batch_pays_no_other_owners_seller(checkout: Client, money: Client, rival: Client) -> None:
    """A line of a batch that names another owner's seller is refused alone, with NOT_FOUND in the report; the other lines are paid."""
    theirs, own = sell(checkout, "50.00"), sell(rival, "50.00")
    destination(money, theirs)
    destination(rival, own)
    lines = [payout_pb2.NewPayout(payout_id=unique("p"), seller_account=seller, amount="1.00", currency="EUR") for seller in (theirs, own)]
    batch = unique("b")
    rival.payout.CreatePayoutBatch(pb.CreatePayoutBatchRequest(payout_batch_id=batch, list=pb.PayoutList(payouts=lines)))

    def done() -> pb.GetPayoutBatchResponse | None:
        found = rival.payout.GetPayoutBatch(pb.GetPayoutBatchRequest(payout_batch_id=batch))
        return found if found.payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE else None

    report = eventually(done)
    assert report is not None
    shown = {line.seller_account: line for line in report.items}
    assert shown[theirs].HasField("error")
    assert not shown[own].HasField("error")
    assert preview(money, theirs).available == "50.00"
    assert refusal(lambda: money.payout.GetPayoutBatch(pb.GetPayoutBatchRequest(payout_batch_id=batch))) == "NOT_FOUND"


def test_of_two_owners_that_claim_a_seller_at_once_one_wins(market: Platform, checkout: Client, rival: Client, chief: Client) -> None:
    """However many calls of two owners name a new seller at the same moment, in orders and destinations, it has one owner and the other stores nothing."""
    for _ in range(3):
        seller = unique("s")

        def call(client: Client, seller: str = seller) -> str:
            try:
                order_of(client, seller)
            except TallystickError as error:
                return error.reason
            return ""

        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(call, [checkout, rival] * 4))
        owner = owner_of(chief, seller)
        winner = {"market": 0, "rival": 1}[owner]
        assert [told[winner::2], told[1 - winner :: 2]] == [[""] * 4, ["ID_TAKEN"] * 4]
        assert rows(market, "payment.payment_order", seller) == 4


def test_a_refused_order_claims_nobody(checkout: Client, rival: Client, chief: Client) -> None:
    """A payment that is refused for one seller claims none of its other sellers, and the refusal names the field."""
    theirs, new, id_ = sell(checkout, "1.00"), unique("s"), unique("c")
    orders = [new_order(f"{id_}-{n}", "buyer-1", seller, "1.00", "EUR") for n, seller in enumerate((new, theirs))]
    with pytest.raises(TallystickError) as error:
        rival.create_payment(id_, orders, credit_card_info="tok_visa")
    assert reason_of(error) == "ID_TAKEN"
    assert "payment_orders[1].seller_account" in str(error.value)
    assert not owner_of(chief, new)


@contextmanager
def no_claims(platform: Platform) -> Iterator[Callable[[int], bool]]:
    """Claims of sellers wait while this is open, having seen that the sellers belong to nobody; tells whether so many transactions wait."""
    waiting = "select count(*) from pg_locks where relation = 'wallet.seller'::regclass and not granted"
    with psycopg.connect(platform.databases.admin) as lock, psycopg.connect(platform.databases.admin, autocommit=True) as look:
        lock.execute("lock table wallet.seller in share mode")
        yield lambda count: eventually(lambda: look.execute(waiting).fetchone() == (count,))


def test_of_two_claims_that_share_a_seller_one_is_made(market: Platform, chief: Client) -> None:
    """Two processes claim groups of sellers at the same moment that have one in common: the group that comes second gets none of its sellers."""
    names = [unique("s") for _ in range(3)]
    groups = {"market": names[:2], "rival": names[1:]}

    def claim(owner: str) -> dict[str, str]:
        claims = [wb.SellerClaim(seller_account=seller, owner=owner, group=1) for seller in groups[owner]]
        with market.client(TOKENS["platform"]) as service:
            answer = service.wallet.BatchClaimSellers(wb.BatchClaimSellersRequest(claims=claims))
        return {seller.seller_account: seller.owner for seller in answer.sellers}

    with ThreadPoolExecutor(2) as pool:
        with no_claims(market) as waits:
            answers = {owner: pool.submit(claim, owner) for owner in groups}
            assert waits(2)
        winner = owner_of(chief, names[1]) if answers["market"].result() else ""
        loser = ({"market", "rival"} - {winner}).pop()
        assert answers[winner].result() == dict.fromkeys(groups[winner], winner)
        assert answers[loser].result() == {names[1]: winner}
    assert [owner_of(chief, seller) for seller in sorted(names)] == [winner if seller in groups[winner] else "" for seller in sorted(names)]


def test_of_two_payments_that_share_a_new_seller_the_refused_one_claims_nobody(
    market: Platform, checkout: Client, rival: Client, chief: Client
) -> None:
    """Payments of two owners name the same new seller at the same moment: one is stored, and the other one's new sellers belong to nobody."""
    names = [unique("s") for _ in range(3)]

    def call(client: Client, sellers: list[str]) -> str:
        id_ = unique("c")
        try:
            client.create_payment(id_, [new_order(f"{id_}-{s}", "buyer-1", s, "1.00", "EUR") for s in sellers], credit_card_info="tok_visa")
        except TallystickError as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(2) as pool:
        with no_claims(market) as waits:
            told = []
            for client, sellers in ((checkout, names[:2]), (rival, names[1:])):
                told.append(pool.submit(call, client, sellers))
                assert waits(len(told))
        assert sorted(one.result() for one in told) == ["", "ID_TAKEN"]
    winner = owner_of(chief, names[1])
    assert [owner_of(chief, names[0]), owner_of(chief, names[2])] == (["market", ""] if winner == "market" else ["", "rival"])


@pytest.mark.parametrize("taken", ["its checkout", "another's checkout", "an order"])
def test_a_payment_that_is_refused_for_an_id_claims_nobody(checkout: Client, rival: Client, chief: Client, taken: str) -> None:
    """A payment whose checkout or order exists already, with other values or another owner, claims none of the new sellers it names."""
    known, new, fresh = order_of(checkout, unique("s")), unique("s"), unique("c")
    client, id_, order = {
        "its checkout": (checkout, known, f"{fresh}-1"),
        "another's checkout": (rival, known, f"{fresh}-1"),
        "an order": (rival, fresh, f"{known}-1"),
    }[taken]
    orders = [new_order(order, "buyer-1", new, "1.00", "EUR")]
    reason = "KEY_REUSED" if taken == "its checkout" else "ID_TAKEN"
    assert refusal(lambda: client.create_payment(id_, orders, credit_card_info="tok_visa")) == reason
    assert not owner_of(chief, new)


def assign(chief: Client, seller: str, owner: str, id_: str = "") -> wallet_pb2.SellerAssignment:
    request = wb.RequestSellerAssignmentRequest(seller_assignment_id=id_ or unique("a"), seller_account=seller, owner=owner, reason="sold")
    return chief.wallet.RequestSellerAssignment(request).seller_assignment


def test_two_operators_assign_a_seller(checkout: Client, money: Client, rival: Client, chief: Client, second: Client) -> None:
    """A seller moves to another owner when a second operator approves it: then the old owner's new orders are refused, and what it made stays its own."""
    seller = sell(checkout, "50.00")
    to, paid = destination(money, seller), order_of(checkout, seller)
    asked = assign(chief, seller, "rival")
    assert (asked.state, asked.previous_owner, asked.requested_by) == (wallet_pb2.SELLER_ASSIGNMENT_STATE_REQUESTED, "market", "chief")
    approve = wb.ApproveSellerAssignmentRequest(seller_assignment_id=asked.seller_assignment_id, reason="seen the contract")
    assert refusal(lambda: chief.wallet.ApproveSellerAssignment(approve)) == "SECOND_PERSON_REQUIRED"
    assert refusal(lambda: assign(chief, seller, "third")) == "STATE_FORBIDS"
    assert owner_of(chief, seller) == "market"
    for _ in range(2):
        assert second.wallet.ApproveSellerAssignment(approve).seller_assignment.state == wallet_pb2.SELLER_ASSIGNMENT_STATE_APPROVED
    reject = wb.RejectSellerAssignmentRequest(seller_assignment_id=asked.seller_assignment_id, reason="no")
    with pytest.raises(TallystickError, match="The assignment is APPROVED and cannot be rejected.") as error:
        chief.wallet.RejectSellerAssignment(reject)
    assert (reason_of(error), error.value.metadata) == ("STATE_FORBIDS", {"state": "APPROVED", "verb": "REJECT"})
    found = chief.wallet.GetSeller(wb.GetSellerRequest(seller_account=seller))
    assert (found.seller.owner, found.seller.version) == ("rival", 2)
    assert [(one.requested_by, one.decided_by) for one in found.assignments] == [("chief", "second")]
    assert refusal(lambda: order_of(checkout, seller)) == "ID_TAKEN"
    assert refusal(lambda: pay_out(money, seller, "1.00")) == "NOT_FOUND"
    assert refusal(lambda: pay_out(rival, seller, "1.00", payout_destination_id=to)) == "NOT_FOUND"  # the old owner's bank account
    assert checkout.get_payment(paid).checkout_id == paid
    assert checkout.create_payment(paid, [new_order(f"{paid}-1", "buyer-1", seller, "10.00", "EUR")], credit_card_info="tok_visa").is_payment_done
    new = destination(rival, seller)
    assert pay_out(rival, seller, "1.00").payout_destination_id == new
    order_of(rival, seller)


def test_a_rejected_assignment_changes_nothing(checkout: Client, chief: Client) -> None:
    """Whoever asked for an assignment may take it back; the seller stays where it was, and may be asked for again."""
    seller = sell(checkout, "1.00")
    asked = assign(chief, seller, "rival")
    assert assign(chief, seller, "rival", asked.seller_assignment_id) == asked
    with pytest.raises(TallystickError) as reused:
        assign(chief, seller, "other", asked.seller_assignment_id)
    assert (reason_of(reused), reused.value.metadata) == ("KEY_REUSED", {"field": "owner"})
    reject = wb.RejectSellerAssignmentRequest(seller_assignment_id=asked.seller_assignment_id, reason="a mistake")
    assert chief.wallet.RejectSellerAssignment(reject).seller_assignment.state == wallet_pb2.SELLER_ASSIGNMENT_STATE_REJECTED
    assert owner_of(chief, seller) == "market"
    assign(chief, seller, "rival")


def test_an_assignment_of_a_seller_that_was_claimed_since_is_not_approved(checkout: Client, chief: Client, second: Client) -> None:
    """An assignment is approved only while the seller belongs to the owner it shows: claimed since, the seller stays, and may be asked for anew."""
    seller = unique("s")
    asked = assign(chief, seller, "rival")
    assert asked.previous_owner == ""
    order_of(checkout, seller)
    approve = wb.ApproveSellerAssignmentRequest(seller_assignment_id=asked.seller_assignment_id, reason="it belongs to nobody")
    with pytest.raises(TallystickError, match="belongs to market now; reject it, and ask for a new one") as error:
        second.wallet.ApproveSellerAssignment(approve)
    assert reason_of(error) == "STATE_FORBIDS"
    assert owner_of(chief, seller) == "market"
    second.wallet.RejectSellerAssignment(wb.RejectSellerAssignmentRequest(seller_assignment_id=asked.seller_assignment_id, reason="claimed"))
    anew = assign(chief, seller, "rival")
    assert anew.previous_owner == "market"
    second.wallet.ApproveSellerAssignment(wb.ApproveSellerAssignmentRequest(seller_assignment_id=anew.seller_assignment_id, reason="sold"))
    assert owner_of(chief, seller) == "rival"


def test_terms_are_the_platforms_and_cut_offs_the_owners(checkout: Client, money: Client, chief: Client) -> None:
    """An owner sets when its seller is paid; fee, minimum and reserve are refused from it, and those that operators set hold, also when they change later."""
    seller = sell(checkout, "50.00")
    for field in ("fee", "minimum_amount", "reserve"):
        assert refusal(lambda field=field: set_schedule(money, seller, **{field: "0.00"})) == "METHOD_FORBIDDEN"  # type: ignore[misc]
    set_schedule(chief, "", fee="0.30")
    own = set_schedule(money, seller)
    assert (own.fee, own.own_terms, own.caller) == ("0.30", False, "money")
    set_schedule(chief, "", fee="0.50")
    assert preview(money, seller).fee == "0.50"
    assert set_schedule(chief, seller, fee="0.10", reserve="5.00").own_terms
    kept = set_schedule(money, seller)
    assert (kept.fee, kept.reserve) == ("0.10", "5.00")
    set_schedule(chief, "")


def test_a_new_destination_waits_and_the_old_one_stays_in_use(own_database: Databases) -> None:
    """Every destination waits its period, the first one too; until it is over the one before it is paid to, also where the new one is bogus."""
    settings = replace(SETTINGS, payout_waiting_period=3600, destination_approve_above={})
    with ExitStack() as opened:
        platform = opened.enter_context(serving(own_database, settings, ports=Ports(payout_providers={"sandbox": Bank()})))
        checkout, money = (opened.enter_context(platform.client(TOKENS[name])) for name in ("checkout", "money"))
        seller = sell(checkout, "10.00")
        first = destination(money, seller)
        assert refusal(lambda: pay_out(money, seller, "1.00")) == "DESTINATION_UNUSABLE"
        assert [one.limit for one in preview(money, seller).shortfalls] == [payout_pb2.PAYOUT_LIMIT_DESTINATION_WAITING]
        _later(own_database, hours=2)
        assert pay_out(money, seller, "1.00").payout_destination_id == first
        new = destination(money, seller)
        assert preview(money, seller).payout_destination_id == first
        assert refusal(lambda: pay_out(money, seller, "1.00", payout_destination_id=new)) == "DESTINATION_UNUSABLE"
        assert pay_out(money, seller, "1.00").payout_destination_id == first
        _later(own_database, hours=4)
        assert pay_out(money, seller, "1.00").payout_destination_id == new


def _later(databases: Databases, *, hours: int) -> None:
    """Has the clock of PayoutService's database go ahead."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute(
            "create or replace function payout.clock() returns timestamptz language sql volatile as "
            f"'select clock_timestamp() + make_interval(hours => {hours})'"
        )


def test_much_money_needs_a_second_person_for_a_new_destination(checkout: Client, money: Client, chief: Client) -> None:
    """A destination that is registered where much is available is not paid to before an operator approves it; the one before it stays in use."""
    seller = sell(checkout, "900.00")
    first = destination(money, seller)
    order_of(checkout, seller, "200.00")
    new = destination(money, seller)
    shown = money.payout.GetPayoutDestination(pb.GetPayoutDestinationRequest(payout_destination_id=new)).payout_destination
    assert shown.awaits_approval
    assert preview(money, seller).payout_destination_id == first
    assert refusal(lambda: pay_out(money, seller, "1.00", payout_destination_id=new)) == "DESTINATION_UNUSABLE"
    approve = pb.ApprovePayoutDestinationRequest(payout_destination_id=new, reason="called the seller")
    assert refusal(lambda: money.payout.ApprovePayoutDestination(approve)) == "METHOD_FORBIDDEN"
    for _ in range(2):
        assert chief.payout.ApprovePayoutDestination(approve).payout_destination.approved_by == "chief"
    assert pay_out(money, seller, "1.00").payout_destination_id == new
    unasked = pb.ApprovePayoutDestinationRequest(payout_destination_id=first, reason="x")
    assert refusal(lambda: chief.payout.ApprovePayoutDestination(unasked)) == "STATE_FORBIDS"


def test_teams_stream_the_events_of_their_own_resources(checkout: Client, money: Client, rival: Client, chief: Client) -> None:
    """A caller streams the events of its owner's resources and no others, under the same cursors as everybody; wallets and alerts are not among them."""
    seller, theirs = sell(checkout, "20.00"), sell(rival, "20.00")
    paid = pay_out(money, seller, "1.00", payout_destination_id=destination(money, seller))
    comes_to(money, paid.payout_id, "PAID")

    def stream(client: Client) -> list[event_pb2.Event]:
        return [one.event for one in client.event.StreamEvents(event_service_pb2.StreamEventsRequest())]

    def told() -> bool:
        return {f"payouts/{paid.payout_id}", f"sellers/{seller}"} <= {event.aggregate_id for event in stream(checkout)}

    assert eventually(told)
    own = stream(money)
    assert {event.owner for event in own} == {"market"}
    assert f"sellers/{theirs}" not in {event.aggregate_id for event in own}
    everything = {event.cursor: event.aggregate_id for event in stream(chief)}
    assert all(everything[event.cursor] == event.aggregate_id for event in own)
    (rest,) = [[event for event in stream(rival) if event.aggregate_id == f"payouts/{paid.payout_id}"]]
    assert not rest


def test_the_holds_of_payouts_are_for_payout_service_alone(market: Platform, checkout: Client) -> None:
    """Another service may neither place, capture nor release a hold of a payout, whatever else is in its call; holds of its own it may."""
    seller, payout_id = sell(checkout, "10.00"), f"payouts/{unique('p')}"

    def hold(hold_id: str) -> wb.NewHold:
        purpose = wallet_pb2.HOLD_PURPOSE_PAYOUT if hold_id == payout_id else wallet_pb2.HOLD_PURPOSE_DISPUTE
        return wb.NewHold(hold_id=hold_id, seller_account=seller, currency="EUR", amount="1.00", purpose=purpose, caller="t")

    own = unique("h")
    with market.client(TOKENS["stranger"]) as stranger, market.client(TOKENS["platform"]) as payouts:
        assert not stranger.wallet.BatchPlaceHold(wb.BatchPlaceHoldRequest(holds=[hold(own)])).results[0].HasField("error")
        assert not payouts.wallet.BatchPlaceHold(wb.BatchPlaceHoldRequest(holds=[hold(payout_id)])).results[0].HasField("error")
        capture, release = [wb.HoldCapture(hold_id=id_, amount="1.00") for id_ in (own, payout_id)], [own, payout_id]
        for call, field in (
            (lambda: stranger.wallet.BatchPlaceHold(wb.BatchPlaceHoldRequest(holds=[hold(unique("h")), hold(payout_id)])), "holds[1].hold_id"),
            (lambda: stranger.wallet.BatchCaptureHold(wb.BatchCaptureHoldRequest(captures=capture)), "captures[1].hold_id"),
            (lambda: stranger.wallet.BatchReleaseHold(wb.BatchReleaseHoldRequest(hold_ids=release)), "hold_ids[1]"),
        ):
            with pytest.raises(TallystickError) as error:
                call()
            assert (reason_of(error), [one.field for one in error.value.field_violations]) == ("METHOD_FORBIDDEN", [field])
        for id_ in release:
            assert stranger.wallet.GetHold(wb.GetHoldRequest(hold_id=id_)).hold.state == wallet_pb2.HOLD_STATE_OPEN
        assert not stranger.wallet.BatchReleaseHold(wb.BatchReleaseHoldRequest(hold_ids=[own])).results[0].HasField("error")
        assert not payouts.wallet.BatchReleaseHold(wb.BatchReleaseHoldRequest(hold_ids=[payout_id])).results[0].HasField("error")


def test_known_sellers_are_sold_for_while_the_wallet_is_away(own_database: Databases) -> None:
    """A payment for a seller that is known here is accepted while WalletService does not answer; one that is not known is refused, and nothing is stored."""
    seller = unique("s")
    with serving(own_database, SETTINGS) as platform, platform.client(TOKENS["checkout"]) as checkout:
        order_of(checkout, seller)
    nowhere = dict.fromkeys(("wallet", "ledger", "event"), "127.0.0.1:1")
    with ExitStack() as opened:
        platform = opened.enter_context(serving(own_database, replace(SETTINGS, address=nowhere), names=("payment",)))
        once = {name: ClientSettings(token=TOKENS[name], attempts=1) for name in ("checkout", "rival")}
        checkout, rival = (opened.enter_context(Client(platform.address, settings=settings)) for settings in once.values())
        id_ = unique("c")
        accepted = checkout.create_payment(
            id_,
            [new_order(f"{id_}-1", "buyer-1", seller, "1.00", "EUR")],
            credit_card_info="tok_visa",
            wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
        )
        assert accepted.checkout_id == id_
        assert refusal(lambda: order_of(rival, seller)) == "DEPENDENCY_UNAVAILABLE"
        assert refusal(lambda: order_of(checkout, unique("s"))) == "DEPENDENCY_UNAVAILABLE"


def test_a_known_seller_does_not_wait_for_an_unknown_one_while_the_wallet_hangs(own_database: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of payments that come together while WalletService hangs those of known sellers are accepted while that of an unknown one still waits; it is
    refused, bounded in time, and nothing of it is stored."""
    original, hangs, waits = WalletHandlers.BatchClaimSellers, Event(), Event()

    async def claim(self: WalletHandlers, request: Any, call: Any) -> Any:
        while hangs.is_set():
            waits.set()
            await asyncio.sleep(0.01)
        return await original(self, request, call)

    monkeypatch.setattr(WalletHandlers, "BatchClaimSellers", claim)
    sellers = [unique("s") for _ in range(4)]
    settings = ClientSettings(token=TOKENS["checkout"], attempts=1)
    with serving(own_database, SETTINGS) as platform, Client(platform.address, settings=settings) as checkout, ThreadPoolExecutor(6) as pool:

        def accepted(seller: str) -> str:
            id_ = unique("c")
            order, wait_for = new_order(f"{id_}-1", "buyer-1", seller, "1.00", "EUR"), payment_service_pb2.WAIT_FOR_ACCEPTANCE
            return checkout.create_payment(id_, [order], credit_card_info="tok_visa", wait_for=wait_for).checkout_id

        for seller in sellers:
            accepted(seller)
        hangs.set()
        try:
            unknown = pool.submit(lambda: refusal(lambda: accepted(unique("s"))))
            assert waits.wait(30)
            for known in [pool.submit(accepted, seller) for seller in sellers]:
                assert known.result(30)
            assert not unknown.done()
            assert unknown.result(30) == "DEPENDENCY_UNAVAILABLE"
        finally:
            hangs.clear()


def test_a_wallet_that_rejects_this_service_counts_as_away(own_database: Databases) -> None:
    """Where WalletService rejects PaymentService and PayoutService themselves, known sellers are sold for; other calls are told to come back, not INTERNAL."""
    seller = unique("s")
    rejected = replace(SETTINGS, service_token="a-token-that-nobody-knows")
    with ExitStack() as opened:
        whole = opened.enter_context(serving(own_database, SETTINGS))
        checkout = opened.enter_context(whole.client(TOKENS["checkout"]))
        order_of(checkout, seller)
        elsewhere = replace(rejected, address=dict.fromkeys(("wallet", "ledger", "event"), whole.address))
        platform = opened.enter_context(serving(own_database, elsewhere, names=("payment", "payout")))
        once = {name: ClientSettings(token=TOKENS[name], attempts=1) for name in ("checkout", "money")}
        checkout, money = (opened.enter_context(Client(platform.address, settings=settings)) for settings in once.values())
        id_ = unique("c")
        order = new_order(f"{id_}-1", "buyer-1", seller, "1.00", "EUR")
        checkout.create_payment(id_, [order], credit_card_info="tok_visa", wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE)
        for call in (
            lambda: order_of(checkout, unique("s")),
            lambda: destination(money, seller),
            lambda: preview(money, seller),
            lambda: money.create_payout(unique("p"), seller, "EUR", "1.00"),
        ):
            with pytest.raises(TallystickError) as error:
                call()
            assert (reason_of(error), error.value.retry_after) == ("DEPENDENCY_UNAVAILABLE", 1.0)
