"""What the pages show, and to whom."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

import pytest

from tallystick_server.http.console import visit as visit_module
from tallystick_server.http.console.calls import MAX_CALLS
from tallystick_server.http.console.pages.search import LOOKUPS
from tests.support.console import Person, Work

SignIn = Callable[[str], Person]


def test_a_payment_shows_its_story_orders_and_attempts(work: Work, alice: Person) -> None:
    """Why it failed, what happens next, and every attempt at the provider."""
    page = alice.get(f"/console/payments/{work.declined}").text
    for text in ("What happens next", "Story", "lost_card", "provider declined", "sandbox"):
        assert text in page
    assert f'href="/console/orders/{work.declined}-0"' in page
    assert 'href="/console/search"' not in page  # a form, no link
    order = alice.get(f"/console/orders/{work.declined}-0").text
    assert "Attempts" in order
    assert "declined" in order


def test_events_are_left_out_of_a_story_until_asked_for(work: Work, alice: Person) -> None:
    """They repeat the other entries; a link shows them."""
    path = f"/console/payments/{work.paid}"
    assert "was published" not in alice.get(path).text
    assert "published events are left out" in alice.get(path).text
    assert "was published" in alice.get(f"{path}?events=1").text


def test_a_seller_shows_wallets_and_statement(work: Work, alice: Person) -> None:
    """Balances, entries with links to what caused them, holds, payouts and payments."""
    page = alice.get(f"/console/sellers/{work.seller}").text
    for text in ("Statement in EUR", "hold placed", "120.00", "Payout schedule in EUR", "market"):
        assert text in page
    assert f'href="/console/payouts/{work.awaiting_payouts[0]}"' in page


def test_the_ledger_is_shown(work: Work, alice: Person) -> None:
    """An account with its entries, a transaction of it, and the trial balance, which sums to 0."""
    page = alice.get(f"/console/accounts?account={work.account}").text
    assert "30.00" in page
    match = re.search(r'href="(/console/transactions/[^"]+)"', page)
    assert match is not None
    transaction = alice.get(match[1]).text
    assert work.account in transaction
    balance = alice.get("/console/trial-balance").text
    assert re.search(r"Sum of all accounts: .*0\.00 .*EUR", balance)
    assert work.account in balance
    past = alice.get("/console/trial-balance?as_of=2020-01-31").text
    assert "No accounts." in past
    assert alice.get("/console/trial-balance?as_of=yesterday").status_code == 400


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("{paid}", "/console/payments/{paid}"),
        ("{declined}", "/console/payments/{declined}"),
        ("o-{paid}-0", "/console/payments/{paid}"),
        ("{seller}", "/console/sellers/{seller}"),
        ("{payout}", "/console/payouts/{payout}"),
        ("{dead_letter}", "/console/dead-letters/payment/{dead_letter}"),
        ("{break_id}", "/console/breaks/{break_id}"),
        ("{file}", "/console/statement-files/{file}"),
    ],
)
def test_an_id_leads_to_its_page(work: Work, alice: Person, text: str, path: str) -> None:
    """The search goes straight to what has this id."""
    names = {
        "paid": work.paid,
        "declined": work.declined,
        "seller": work.seller,
        "payout": work.awaiting_payouts[0],
        "dead_letter": work.dead_letters[0],
        "break_id": work.breaks[0],
        "file": work.statement_file,
    }
    response = alice.http.get("/console/search", params={"q": f" {text.format(**names)} "})
    assert response.headers["Location"] == path.format(**names)


def test_a_buyer_an_order_and_a_reference_are_found(work: Work, alice: Person) -> None:
    """What several things have in common is a list with links to each."""

    def found(text: str) -> str:
        return alice.http.get("/console/search", params={"q": text}).text

    assert f'href="/console/payments/{work.paid}"' in found("buyer-1")
    assert f'href="/console/orders/{work.paid}-0"' in found(f"{work.paid}-0")
    assert 'href="/console/transactions/' in found("ch-1")
    assert "Nothing that you may see" in found("nothing-has-this-id")
    assert "Nothing that you may see" in found("not an id of anything")
    assert len(LOOKUPS) <= MAX_CALLS


def test_lists_are_filtered(work: Work, alice: Person) -> None:
    """A filter that the platform does not have is rejected, not ignored."""
    page = alice.get("/console/payments?state=FAILED").text
    assert work.declined in page
    assert work.paid not in page
    assert alice.get("/console/payments?state=NONSENSE").status_code == 400
    assert alice.get("/console/payments?page_token=forged").status_code == 400


def test_the_pages_of_a_list_have_each_item_once(
    work: Work, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page leads to the next with the same filter, and back to the first."""
    monkeypatch.setattr(visit_module, "PAGE_SIZE", 2)
    seen: list[str] = []
    path = first = "/console/accounts?prefix=sellers"
    while path:
        page = alice.get(path).text
        names = re.findall(r'<th scope="row"><a href="[^"]*">(sellers/[^<]+)</a>', page)
        assert len(names) <= 2
        assert (">First page<" in page) == (path != first)
        seen += names
        following = re.search(r'<a href="([^"]+)">Next page<', page)
        path = unescape(following[1]) if following else ""
        assert not path or "prefix=sellers" in path
    assert len(seen) > 2
    assert seen == sorted(set(seen))


def test_a_browser_asks_for_what_an_act_needs(work: Work, alice: Person) -> None:
    """A reason is required in the form; an assignee is not, because none is a choice."""
    page = alice.get(f"/console/breaks/{work.breaks[0]}").text
    fields = dict(re.findall(r'<input id="[^"]*" name="(\w+)"([^>]*)>', page))
    assert " required" in fields["comment"]
    assert " required" not in fields["assignee"]


def test_a_team_sees_its_own_payments_only(work: Work, sign_in: SignIn) -> None:
    """A part of a page for which the role is missing says so; the others are there."""
    shop = sign_in("shop")
    assert work.paid in shop.get(f"/console/payments/{work.paid}").text
    seller = shop.get(f"/console/sellers/{work.seller}")
    assert seller.status_code == 200
    assert "PERMISSION_DENIED, from wallet.ListWallets" in seller.text
    assert shop.get("/console/breaks").status_code == 403


def test_an_auditor_reads_the_ledger_only(work: Work, sign_in: SignIn) -> None:
    """The trial balance is there; a payment is not, and the page says why."""
    auditor = sign_in("auditor")
    assert work.account in auditor.get("/console/trial-balance").text
    response = auditor.get(f"/console/payments/{work.paid}")
    assert response.status_code == 403
    assert "PERMISSION_DENIED, from payment.GetPayment" in response.text


def test_what_does_not_exist_has_an_error_page(alice: Person) -> None:
    """As a page with its status, whatever the id looks like."""
    for path in ("payments/none", "payouts/none", "breaks/none"):
        response = alice.get(f"/console/{path}")
        assert response.status_code == 404
        assert "<h1>Not found</h1>" in response.text
    assert alice.get("/console/payments/" + "x" * 300).status_code == 400


@pytest.mark.parametrize("query", ["x=%ff", "&".join(f"a{number}=1" for number in range(60))])
def test_a_malformed_query_is_rejected_as_a_page(alice: Person, query: str) -> None:
    """It is not UTF-8, or has too many fields."""
    response = alice.get(f"/console/payments?{query}")
    assert response.status_code == 400
    assert "The form must be UTF-8 and have at most 50 fields." in response.text
