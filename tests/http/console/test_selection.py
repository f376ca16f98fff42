"""Several items at once: what becomes of each is shown, also if only some can be decided."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from google.protobuf.message import Message

from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick_server.http.console.calls import PublicCalls
from tests.support.break_operator import Operator
from tests.support.callers import token_of
from tests.support.console import (
    WAIT_FOR_ACCEPTANCE,
    Person,
    dead_letters_of,
    serve_console,
    serve_pages,
    unreachable,
)
from tests.support.payments import create_payment
from tests.support.platform import ServedPlatform, eventually, fresh_database
from tests.support.reconciliation import Provider, breaks_of, charge, reconcile, transactions_of

SignIn = Callable[[str], Person]
LIST = "/console/dead-letters"
SELECTED = f"{LIST}/payment/selected"
MATCHING = "/console/matching-dead-letters/payment"


@pytest.fixture(scope="module")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("selection")) as databases,
        serve_console(databases) as served_platform,
    ):
        yield served_platform


def create_dead_letters(platform: ServedPlatform, count: int) -> list[str]:
    """New open dead letters of charges."""
    with platform.client(token_of("shop")) as shop, platform.client(token_of("alice")) as alice:
        earlier = set(dead_letters_of(alice))
        for _ in range(count):
            create_payment(shop, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)

        def new() -> list[str]:
            found = [id_ for id_ in dead_letters_of(alice) if id_ not in earlier]
            return found if len(found) == count else []

        return eventually(new)


def send(person: Person, path: str, selected: list[str], **fields: str) -> httpx.Response:
    """Sends the form of a list."""
    data = {"csrf_token": person.csrf_token(), "selected": selected, **fields}
    return person.http.post(path, data=data)


def test_selected_dead_letters_are_decided_each_by_itself(
    platform: ServedPlatform, alice: Person
) -> None:
    """One that was decided before is shown as rejected, with the platform's error."""
    ids = create_dead_letters(platform, 3)
    page = alice.get(LIST).text
    assert all(f'name="selected" value="{id_}"' in page for id_ in ids)
    alice.act(f"{LIST}/payment/{ids[0]}/close", reason="first", evidence="none in their list")
    response = send(
        alice, f"{SELECTED}/close", ids, reason="given up", evidence="nothing at the provider"
    )
    assert response.status_code == 200
    assert "2 of 3 done" in response.text
    rows = {id_: row_of(response.text, id_) for id_ in ids}
    assert "rejected" in rows[ids[0]]
    assert "from payment.CloseDeadLetter" in rows[ids[0]]
    assert all("closed" in rows[id_] and "given up" in rows[id_] for id_ in ids[1:])


def row_of(page: str, id_: str) -> str:
    """The row of a table about an item."""
    found = re.search(rf"<tr><th[^>]*><a [^>]*>{re.escape(id_)}</a>.*?</tr>", page, re.DOTALL)
    assert found is not None
    return found[0]


def test_a_selection_that_the_platform_rejects_changes_nothing(
    platform: ServedPlatform, alice: Person, sign_in: SignIn
) -> None:
    """Without a reason, without the role, and without a selection; the token is required too."""
    ids = create_dead_letters(platform, 2)
    missing = send(alice, f"{SELECTED}/retry", ids, reason="")
    assert missing.status_code == 400
    assert "0 of 2 done" in missing.text
    assert missing.text.count("reason is required") == 2
    auditor = sign_in("auditor")
    assert "Select" not in auditor.get(LIST).text
    forbidden = send(auditor, f"{SELECTED}/retry", ids, reason="mine")
    assert forbidden.status_code == 403
    assert forbidden.text.count("PERMISSION_DENIED, from payment.RetryDeadLetter") == 2
    none = send(alice, f"{SELECTED}/retry?state=OPEN&cause=REJECTED", [], reason="x")
    assert none.status_code == 400
    assert "Select at least one dead letter." in none.text
    assert f'action="{LIST}"' in none.text
    for path in (f"{SELECTED}/retry", f"{MATCHING}/retry", "/console/breaks/selected/match"):
        forged = alice.http.post(path, data={"selected": ids, "reason": "x"})
        assert forged.status_code == 403
        assert "The form belongs to another session." in forged.text
    assert all(f'value="{id_}"' in alice.get(LIST).text for id_ in ids)


def test_without_an_answer_the_result_is_not_known() -> None:
    """A call whose answer is missing may have been done: no page calls it rejected."""
    with serve_pages(lambda: PublicCalls(*unreachable())) as browser:
        page = browser.get("/console/search").text
        token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
        fields = {"csrf_token": token, "reason": "fixed"}
        selected = browser.post(f"{SELECTED}/retry", data={**fields, "selected": "d-1"})
        single = browser.post("/console/unapplied-charges/u-1/acknowledge", data=fields)
    assert selected.status_code == single.status_code == 503
    assert "not known" in row_of(selected.text, "d-1")
    assert "It is not known whether this was done." in single.text
    assert "rejected" not in selected.text + single.text


class _CountedCalls(PublicCalls):
    """Calls that succeed. Counts how many are made at the same time."""

    in_flight = max_in_flight = 0

    async def send(self, name: str, message: Message, token: str) -> Message:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        await asyncio.sleep(0.01)
        self.in_flight -= 1
        return operator_pb2.CloseDeadLetterResponse(
            dead_letter=operator_pb2.DeadLetter(dead_letter_id="charges-o-1-1")
        )


def test_a_provider_is_asked_about_few_dead_letters_at_a_time() -> None:
    """Each close looks up an operation at its provider, and a page has 25 dead letters."""
    calls: list[_CountedCalls] = []

    def make_calls() -> PublicCalls:
        calls.append(_CountedCalls(*unreachable()))
        return calls[0]

    with serve_pages(make_calls) as browser:
        page = browser.get("/console/search").text
        token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
        fields = {"csrf_token": token, "reason": "given up", "evidence": "none there"}
        selected = [f"charges-o-{number}-1" for number in range(25)]
        response = browser.post(f"{SELECTED}/close", data={**fields, "selected": selected})
    assert "25 of 25 done" in response.text
    assert calls[0].max_in_flight == 5


def test_all_that_match_are_counted_and_then_decided(
    platform: ServedPlatform, alice: Person, sign_in: SignIn
) -> None:
    """A close handles 20 at a time; the page offers the next, with the same reason."""
    with platform.client(token_of("alice")) as client:
        before = len(dead_letters_of(client))
    create_dead_letters(platform, 21)
    query = "cause=REJECTED&provider=sandbox"
    assert f"{MATCHING}?cause=REJECTED&amp;provider=sandbox" in alice.get(f"{LIST}?{query}").text
    counted = alice.get(f"{MATCHING}?{query}").text
    assert f"{before + 21} open with the cause rejected of sandbox" in counted
    assert "0 open" in alice.get(f"{MATCHING}?cause=PENDING").text
    other = alice.act(f"{MATCHING}/retry", cause="PENDING", provider="sandbox", reason="x")
    assert "0 handled: 0 retried" in other.text
    chosen = {"cause": "REJECTED", "provider": "sandbox"}
    missing = alice.act(f"{MATCHING}/close", **chosen, reason="given up", evidence="")
    assert missing.status_code == 400
    assert "evidence is required" in missing.text
    assert 'value="given up"' in missing.text
    assert sign_in("auditor").act(f"{MATCHING}/close", **chosen, reason="x").status_code == 403
    closed = alice.act(f"{MATCHING}/close", **chosen, reason="given up", evidence="none there")
    assert (
        "20 handled: 20 closed, 0 resolved by an answer of the provider, 0 skipped" in closed.text
    )
    assert "Close the next" in closed.text
    hidden = dict(
        re.findall(r'name="(\w+)" value="([^"]*)"', closed.text.split("There are more")[1])
    )
    rest = alice.http.post(f"{MATCHING}/close", data=hidden)
    assert f"{before + 1} handled: {before + 1} closed" in rest.text
    assert "There are more" not in rest.text
    assert "No dead letters." in alice.get(LIST).text


def test_all_that_match_are_retried(platform: ServedPlatform, alice: Person) -> None:
    """Without a filter it is all of them."""
    create_dead_letters(platform, 2)
    done = alice.act(f"{MATCHING}/retry", cause="", provider="", reason="fixed")
    assert "2 handled: 2 retried, 0 skipped" in done.text


def test_payouts_have_their_own_dead_letters(platform: ServedPlatform, alice: Person) -> None:
    """The lists and acts of payouts call PayoutService."""
    response = send(
        alice, f"{LIST}/payout/selected/retry?service=payout", ["payouts-none-1"], reason="x"
    )
    assert response.status_code == 404
    assert "from payout.RetryDeadLetter" in response.text
    with platform.client(token_of("alice")) as client:
        assert not client.payout.ListPayouts(payout_service_pb2.ListPayoutsRequest()).payouts


def test_selected_breaks_are_matched_with_each_other(
    platform: ServedPlatform, alice: Person, sign_in: SignIn
) -> None:
    """A line and the entry that it is about agree. Two lines are rejected with how much they
    differ, and the selection stays.
    """
    with platform.client(token_of("alice")) as client:
        provider = Provider(client, "acme")
        lines = [charge(30_00, "other"), charge(40_00, "wrong")]
        reconcile(client, provider.account, lines, file_name="two.csv")
        provider.pay_in(30_00, "right")
        (entry,) = transactions_of(client, provider.account)
        Operator(client).open(provider.account, entry.transaction_id)
        found = breaks_of(client, account=provider.account)
    amounts = {item.difference: item.break_id for item in found}
    ids = [amounts["30.00"], amounts["40.00"], amounts["-30.00"]]
    query = f"account={provider.account}"
    path = f"/console/breaks/selected/match?{query}"
    assert all(f'name="selected" value="{id_}"' in alice.get("/console/breaks").text for id_ in ids)
    assert "Match the selected" not in sign_in("auditor").get("/console/breaks").text
    assert send(sign_in("auditor"), path, ids, reason="x").status_code == 403
    rejected = send(alice, path, ids[:2], reason="the same money")
    assert rejected.status_code == 400
    assert "from reconciliation.MatchBreaks" in rejected.text
    assert rejected.text.count(" checked>") == 2
    assert 'value="the same money"' in rejected.text
    matched = send(alice, path, [ids[0], ids[2]], reason="the same money")
    assert "The breaks are matched with each other." in matched.text
    assert ids[0] in matched.text
    assert f'name="selected" value="{ids[0]}"' not in alice.get("/console/breaks").text
    assert f'name="selected" value="{ids[1]}"' in alice.get("/console/breaks").text
