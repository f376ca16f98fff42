"""The example shop at a demo, from the basket to the payment and back."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tallystick import Client, UnavailableError
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tests.support.demo import DemoShop, running_demo_shop, running_shop
from tests.support.platform import ROOT, free_address

SHOP = ROOT / "clients/python/examples/shop/shop.py"


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoShop]:
    with running_demo_shop() as demo_shop:
        yield demo_shop


@pytest.fixture(scope="module")
def client(demo: DemoShop) -> Iterator[Client]:
    with Client(demo.address) as sdk_client:
        yield sdk_client


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    with httpx.Client(headers={"Accept-Language": "en"}, timeout=30) as http_client:
        yield http_client


def open_basket(demo: DemoShop, browser: httpx.Client) -> str:
    """The URL of a new basket."""
    response = browser.get(f"{demo.shop.url}/", follow_redirects=True)
    assert "34.40 EUR" in response.text
    return str(response.url)


def click_pay(browser: httpx.Client, basket_url: str) -> str:
    """Where the button of the basket leads."""
    response = browser.post(basket_url)
    assert response.status_code == 303
    return response.headers["Location"]


def pay(browser: httpx.Client, page_url: str, card: str) -> httpx.Response:
    return browser.post(page_url, data={"card": card}, follow_redirects=True)


def link_of(response: httpx.Response, text: str) -> str:
    """The URL of the link with a text."""
    (url,) = re.findall(rf'href="([^"]+)"[^>]*>{text}</a>', response.text)
    assert isinstance(url, str)
    return url


def order_url_of(basket_url: str) -> str:
    return basket_url.replace("/basket/", "/order/")


def run_shop(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SHOP), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def list_checkouts(client: Client) -> set[str]:
    request = payment_service_pb2.ListPaymentsRequest(page_size=200)
    return {
        payment.checkout_id
        for payment in client.pages(client.payment.ListPayments, request, "payments")
    }


def test_a_basket_is_paid_once(demo: DemoShop, client: Client, browser: httpx.Client) -> None:
    """Clicks at the same time lead to one page and one payment. Once it is paid, the order page
    says so, the goods are sent, and the button leads to the order.
    """
    before = list_checkouts(client)
    basket_url = open_basket(demo, browser)
    with ThreadPoolExecutor(4) as threads:
        (page_url,) = set(threads.map(lambda _: click_pay(browser, basket_url), range(4)))
    assert page_url.startswith(demo.origins[2])
    (checkout_id,) = list_checkouts(client) - before
    assert "/p/" in str(pay(browser, page_url, "success").url)
    assert client.wait_for_payment(checkout_id, 30).is_payment_done
    order = browser.get(order_url_of(basket_url))
    assert "Your order is paid" in order.text
    demo.shop.wait_for_line(f"{checkout_id} is paid: send the goods")
    assert click_pay(browser, basket_url) == f"/order/{basket_url.rpartition('/')[2]}"
    assert list_checkouts(client) - before == {checkout_id}


def test_a_buyer_who_leaves_returns_to_the_basket(
    demo: DemoShop, client: Client, browser: httpx.Client
) -> None:
    """The URL of the order is no proof: without a payment it says "not paid yet". The button then
    leads to the same page, on which the buyer can still pay.
    """
    basket_url = open_basket(demo, browser)
    assert browser.get(order_url_of(basket_url)).headers["Location"] in basket_url
    page_url = click_pay(browser, basket_url)
    before = list_checkouts(client)
    status = browser.get(link_of(browser.get(page_url), "Leave without paying"))
    assert link_of(status, "Back to the shop") == basket_url
    order = browser.get(order_url_of(basket_url))
    assert "Not paid yet" in order.text
    assert link_of(order, "Continue to the payment") == page_url
    assert click_pay(browser, basket_url) == page_url
    assert list_checkouts(client) == before


def test_the_next_payment_of_a_failed_one_is_new(
    demo: DemoShop, client: Client, browser: httpx.Client
) -> None:
    """A payment that has failed leads back to the basket, and clicks at the same time create one
    more payment.
    """
    before = list_checkouts(client)
    basket_url = open_basket(demo, browser)
    page_url = click_pay(browser, basket_url)
    (checkout_id,) = list_checkouts(client) - before
    client.payment.CancelPayment(
        payment_service_pb2.CancelPaymentRequest(checkout_id=checkout_id, reason="sold out")
    )
    payment = client.wait_for_payment(checkout_id, 30)
    assert payment.payment_state == payment_pb2.PAYMENT_STATE_FAILED
    order = browser.get(order_url_of(basket_url))
    assert "was not successful" in order.text
    assert link_of(order, "Back to the basket") in basket_url
    with ThreadPoolExecutor(4) as threads:
        (next_url,) = set(threads.map(lambda _: click_pay(browser, basket_url), range(4)))
    assert next_url != page_url
    assert len(list_checkouts(client) - before) == 2


def test_a_debit_that_takes_time_is_processed(
    demo: DemoShop, client: Client, browser: httpx.Client
) -> None:
    """A buyer who paid by a bank debit waits for its result, and cannot pay a second time."""
    before = list_checkouts(client)
    basket_url = open_basket(demo, browser)
    pay(browser, click_pay(browser, basket_url), "delayed_success")
    order_url = order_url_of(basket_url)
    assert order_url.endswith(click_pay(browser, basket_url))
    assert "is being processed" in browser.get(order_url).text
    (checkout_id,) = list_checkouts(client) - before
    assert client.wait_for_payment(checkout_id, 60).is_payment_done
    assert "Your order is paid" in browser.get(order_url).text


def test_the_curl_lines_of_the_guide(demo: DemoShop, browser: httpx.Client) -> None:
    """Each curl command of the guide prints the expected answer, once its page is paid."""
    guide = (ROOT / "docs/guides/hosted-page.md").read_text()
    expected_texts = [
        '"payment_state": "PAYMENT_STATE_OPEN"',
        "event: end",
        '"is_payment_done": true',
        '"payment_state": "PAYMENT_STATE_OPEN"',
        '"payment": {',
        "{}",
    ]
    for line, text in zip(
        re.findall(r"^curl .*$", guide, re.MULTILINE), expected_texts, strict=True
    ):
        completed = subprocess.run(
            ["bash", "-c", line.replace("http://127.0.0.1:7080", demo.origins[1])],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert text in completed.stdout, completed.stdout + completed.stderr
        if "checkout-6" in line and "-d" in line:
            payment = json.loads(completed.stdout)["payment"]
            page_url, status_url = payment["hosted_page"]["url"], payment["status_url"]
            pay(browser, page_url, "success")
    assert browser.get(status_url).status_code == 404


@pytest.mark.parametrize("path", ["/basket/unknown", "/order/unknown", "/basket", "/x"])
def test_an_unknown_page_is_not_found(demo: DemoShop, browser: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        response = browser.request(method, f"{demo.shop.url}{path}")
        assert (response.status_code, "Not found" in response.text) == (404, True)


def test_a_query_and_a_head_request_are_accepted(demo: DemoShop, browser: httpx.Client) -> None:
    """A program that adds parameters to a URL, or checks it, does not break the shop."""
    basket_url = open_basket(demo, browser)
    assert "34.40 EUR" in browser.get(f"{basket_url}?utm=1").text
    head = browser.head(basket_url)
    assert (head.status_code, head.text) == (200, "")
    page_url = click_pay(browser, f"{basket_url}?utm=1")
    order = browser.get(f"{order_url_of(basket_url)}?utm=1")
    assert link_of(order, "Continue to the payment") == page_url


def test_the_shop_explains_its_arguments(demo: DemoShop) -> None:
    """Help, and one line for a port that another program has or that is none."""
    help_ = run_shop("--help")
    assert (help_.returncode, help_.stderr) == (0, "")
    assert "of the platform" in help_.stdout
    for port in (demo.shop.url.rpartition(":")[2], "70000"):
        completed = run_shop(demo.address, port)
        assert completed.returncode == 2
        assert f"error: port {port} cannot be used: " in completed.stderr
        assert "Traceback" not in completed.stderr


def test_goods_are_sent_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shop reads the events again after the last one, and logs the failure."""
    shop_module = runpy.run_path(str(SHOP))
    monkeypatch.setitem(shop_module["Shop"].send_goods.__globals__, "RETRY_SECONDS", 0.0)
    cursors = []

    def read_events(cursor: int, **_: object) -> Iterator[event_pb2.Event]:
        cursors.append(cursor)
        if len(cursors) == 1:
            yield event_pb2.Event(cursor=7)
            raise UnavailableError("no connection")
        shop.ending.set()

    with shop_module["Shop"](SimpleNamespace(events=read_events), 0) as shop:
        shop.send_goods()
    assert cursors == [0, 7]
    assert capsys.readouterr().err == "no goods are sent for 0 s: no connection\n"


def test_a_shop_without_an_allowed_origin(
    demo: DemoShop, browser: httpx.Client, tmp_path: Path
) -> None:
    """A payment that is rejected leaves the buyer in the shop, whose log names the setting. The
    shop ends by SIGINT without an error.
    """
    port = free_address().rpartition(":")[2]
    with running_shop(tmp_path, demo.address, port) as shop:
        basket_url = str(browser.get(f"{shop.url}/", follow_redirects=True).url)
        response = browser.post(basket_url)
        assert response.status_code == 503
        assert "you pay only once" in response.text
    assert "payment.return_origins" in shop.errors.read_text()
    assert shop.process.returncode == 0
    assert "Traceback" not in shop.errors.read_text()
    assert "no goods" not in shop.errors.read_text()
