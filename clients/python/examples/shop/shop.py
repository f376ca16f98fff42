"""A shop whose buyers pay on a page of the provider. docs/guides/hosted-page.md explains it.

Usage: python shop.py [ADDRESS] [PORT]
"""

import sys
import threading
import uuid
from contextlib import suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template

from tallystick import (
    Client,
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
        self.is_ending = False
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
        try:
            for event in self.client.events(types=[closed], follow=True):
                payment = event.payment
                is_paid = payment.payment_state == payment_pb2.PAYMENT_STATE_PAID
                if is_paid and self.baskets.has_checkout(payment.checkout_id):
                    print(f"{payment.checkout_id} is paid: send the goods", flush=True)
        except TallystickError as error:
            if not self.is_ending:
                print(f"no goods are sent any more: {error}", file=sys.stderr)


class Pages(BaseHTTPRequestHandler):
    server: Shop

    def do_GET(self) -> None:
        match self.path.split("/")[1:]:
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
        match self.path.split("/")[1:]:
            case ["basket", basket_id] if checkout_id := self.server.baskets.checkout_of(basket_id):
                self.pay(basket_id, checkout_id)
            case _:
                self.show(404, "Not found", "There is no such basket.", "/", "Start again")

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
            self.show(503, "Not available", text, self.path, "Try again")
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
            self.show(200, "Not paid yet", text, self.path, "Check again")

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
        self.wfile.write(content)


def main(address: str, port: int) -> None:
    with Client(address) as client, Shop(client, port) as shop:
        threading.Thread(target=shop.send_goods, daemon=True).start()
        print(f"The shop is at {shop.url}. It ends by Ctrl-C.", flush=True)
        with suppress(KeyboardInterrupt):
            shop.serve_forever()
        shop.is_ending = True


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070",
        int(sys.argv[2]) if len(sys.argv) > 2 else 8000,
    )
