"""A shop whose buyers pay on a page of the provider. docs/guides/hosted-page.md explains it."""

import argparse
import sys
import threading
import uuid
from contextlib import suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from tallystick import (
    Client,
    ClientSettings,
    DeadlineExceededError,
    NotFoundError,
    TallystickError,
    new_order,
)
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2

FOLDER = Path(__file__).parent
MESSAGE_PAGE = Template((FOLDER / "message.html").read_text())
WAIT_SECONDS = 3.0
CALL_SECONDS = {"CreatePayment": 8.0, "GetPayment": 8.0}
"""Deadlines of the calls for which a buyer waits."""
RETRY_SECONDS = 5.0


def new_checkout_id() -> str:
    """Buyers read it on the provider's page. Order numbers of a real shop are as good."""
    return f"shop-{uuid.uuid4().hex[:12]}"


class Baskets:
    """The checkout_id of each basket. A real shop stores it in its database, with the basket."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checkout_ids: dict[str, str] = {}

    def add(self) -> str:
        basket_id = uuid.uuid4().hex
        with self._lock:
            self._checkout_ids[basket_id] = new_checkout_id()
        return basket_id

    def checkout_of(self, basket_id: str) -> str | None:
        with self._lock:
            return self._checkout_ids.get(basket_id)

    def replace_failed(self, basket_id: str, failed_checkout_id: str) -> str:
        """A payment that failed stays failed: the next one has another checkout_id."""
        with self._lock:
            if self._checkout_ids[basket_id] == failed_checkout_id:
                self._checkout_ids[basket_id] = new_checkout_id()
            return self._checkout_ids[basket_id]

    def has_checkout(self, checkout_id: str) -> bool:
        with self._lock:
            return checkout_id in self._checkout_ids.values()


class Shop(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, client: Client, port: int) -> None:
        super().__init__(("127.0.0.1", port), Pages)
        self.client = client
        self.baskets = Baskets()
        self.ending = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def create_payment(self, basket_id: str, checkout_id: str) -> payment_pb2.Payment:
        """A reload or a second click sends the same values, and gets the same payment."""
        return self.client.create_payment(
            checkout_id,
            [
                new_order(f"{checkout_id}-1", "buyer-ada", "seller-books", "24.90", "EUR"),
                new_order(f"{checkout_id}-2", "buyer-ada", "seller-music", "9.50", "EUR"),
            ],
            hosted_page=payment_pb2.NewHostedPage(
                success_url=f"{self.url}/order/{basket_id}",
                cancel_url=f"{self.url}/basket/{basket_id}",
            ),
            partial_failure_policy=payment_pb2.PARTIAL_FAILURE_POLICY_ALL_OR_NOTHING,
        )

    def read_payment(self, checkout_id: str) -> payment_pb2.Payment:
        """The payment once it is final, or as it is after some seconds."""
        try:
            return self.client.wait_for_payment(checkout_id, WAIT_SECONDS)
        except DeadlineExceededError:
            return self.client.get_payment(checkout_id)

    def send_goods(self) -> None:
        """Buyers who have paid may never return, so the goods are sent by events. A real shop
        stores the cursor of the last event, and continues after it.
        """
        closed = event_pb2.EVENT_TYPE_PAYMENT_CLOSED
        cursor = 0
        while not self.ending.is_set():
            try:
                for event in self.client.events(cursor, types=[closed], follow=True):
                    payment = event.payment
                    is_paid = payment.payment_state == payment_pb2.PAYMENT_STATE_PAID
                    if is_paid and self.baskets.has_checkout(payment.checkout_id):
                        print(f"{payment.checkout_id} is paid: send the goods", flush=True)
                    cursor = event.cursor
            except TallystickError as error:
                if not self.ending.is_set():
                    print(
                        f"no goods are sent for {RETRY_SECONDS:.0f} s: {error}",
                        file=sys.stderr,
                        flush=True,
                    )
                self.ending.wait(RETRY_SECONDS)


class Pages(BaseHTTPRequestHandler):
    server: Shop

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.segments():
            case [""]:
                self.redirect(f"/basket/{self.server.baskets.add()}")
            case ["shop.css"]:
                self.send(200, "text/css", (FOLDER / "shop.css").read_text())
            case ["basket", basket_id] if self.server.baskets.checkout_of(basket_id):
                self.send(200, "text/html", (FOLDER / "basket.html").read_text())
            case ["order", basket_id] if checkout_id := self.server.baskets.checkout_of(basket_id):
                self.show_order(basket_id, checkout_id)
            case _:
                self.show(404, "Not found", "There is no such page.", "/", "Start again")

    def do_POST(self) -> None:
        match self.segments():
            case ["basket", basket_id] if checkout_id := self.server.baskets.checkout_of(basket_id):
                self.pay(basket_id, checkout_id)
            case _:
                self.show(404, "Not found", "There is no such basket.", "/", "Start again")

    def segments(self) -> list[str]:
        """The path without its query: something on the way may add parameters to a URL."""
        return urlsplit(self.path).path.split("/")[1:]

    def pay(self, basket_id: str, checkout_id: str) -> None:
        try:
            payment = self.server.create_payment(basket_id, checkout_id)
            if payment.payment_state == payment_pb2.PAYMENT_STATE_FAILED:
                checkout_id = self.server.baskets.replace_failed(basket_id, checkout_id)
                payment = self.server.create_payment(basket_id, checkout_id)
        except TallystickError as error:
            self.log_error("CreatePayment: %s", error)
            text = "The payment cannot start now. If you try again, you pay only once."
            self.show(503, "Not available", text, f"/basket/{basket_id}", "Back to the basket")
            return
        # without a URL it is paid already, or the page is still being registered
        self.redirect(payment.hosted_page.url or f"/order/{basket_id}")

    def show_order(self, basket_id: str, checkout_id: str) -> None:
        """What the platform says counts, and not that the buyer has come to this URL."""
        try:
            payment = self.server.read_payment(checkout_id)
        except NotFoundError:
            self.redirect(f"/basket/{basket_id}")
            return
        except TallystickError as error:
            self.log_error("GetPayment: %s", error)
            text = "The order cannot be shown now. Your payment is not affected."
            self.show(503, "Not available", text, f"/order/{basket_id}", "Try again")
            return
        if payment.payment_state == payment_pb2.PAYMENT_STATE_PAID:
            text = "Your order is paid, and will be sent to you."
            self.show(200, "Thank you", text, "/", "Buy something else")
        elif payment.payment_state == payment_pb2.PAYMENT_STATE_FAILED:
            text = "The payment was not successful."
            self.show(200, "Not paid", text, f"/basket/{basket_id}", "Back to the basket")
        elif payment.hosted_page.url:
            text = "Your order is not paid yet."
            self.show(200, "Not paid yet", text, payment.hosted_page.url, "Continue to the payment")
        else:
            text = "Your payment is being processed. Please do not pay again."
            self.show(200, "Not paid yet", text, f"/order/{basket_id}", "Check again")

    def show(self, status: int, title: str, text: str, url: str, link: str) -> None:
        values = {"title": title, "text": text, "url": escape(url), "link": link}
        self.send(status, "text/html", MESSAGE_PAGE.substitute(values))

    def redirect(self, url: str) -> None:
        self.send_response(303)
        self.send_header("Location", url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, status: int, content_type: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", nargs="?", default="127.0.0.1:7070", help="of the platform")
    parser.add_argument("port", nargs="?", default=8000, type=int, help="of the shop")
    arguments = parser.parse_args()
    with Client(arguments.address, settings=ClientSettings(deadlines=CALL_SECONDS)) as client:
        try:
            shop = Shop(client, arguments.port)
        except (OSError, OverflowError) as error:
            parser.error(f"port {arguments.port} cannot be used: {error}")
        with shop, suppress(KeyboardInterrupt):
            threading.Thread(target=shop.send_goods, daemon=True).start()
            print(f"The shop is at {shop.url}. It ends by Ctrl-C.", flush=True)
            shop.serve_forever()
        shop.ending.set()


if __name__ == "__main__":
    main()
