"""The demo as a process, and the provider that it chooses."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tallystick import Client, new_order
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_sandbox.stripe.server import create_app
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.cli.demo_provider import (
    API_KEY_VARIABLE,
    load_demo_settings,
    stripe_of,
    use_look_alike,
    webhook_url,
)
from tallystick_server.payment.wiring import public_url
from tallystick_storage.database import Database
from tests.support.demo import demo_folder, run_demo, running_demo
from tests.support.http import serve_app
from tests.support.platform import eventually, free_address
from tests.support.platform import serve_platform as platform_of


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with demo_folder() as folder:
        yield folder


def wallets_of(run: subprocess.CompletedProcess[str], seller: str) -> list[str]:
    """The seller's wallet before and after the first payment, as the demo prints it."""
    return re.findall(rf"^ +{seller} +((?:before|after) .*)$", run.stdout, re.MULTILINE)


def test_the_demo_runs_twice_on_the_same_data(short_folder: Path) -> None:
    """A first run, and a second on the data of the first, both exit 0, and both pay on a page; as
    root nothing outside the demo's folder changes permissions.
    """
    before = {p: p.stat().st_mode for p in (short_folder, *short_folder.parents)}
    first = run_demo(short_folder)
    folder = Settings().replace(data_dir=short_folder)
    with (
        open_databases(folder, lambda _: None) as local_databases,
        platform_of(local_databases, Settings().replace(release_delay=604_800)) as platform,
        platform.client() as client,
    ):
        # as README's first call; it stays pending
        sale = new_order("order-1", "buyer-ada", "seller-books", "24.90", "EUR")
        client.create_payment("checkout-1", [sale], credit_card_info="tok_visa")
    second = run_demo(short_folder)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    for run in (first, second):
        assert "PAID, is_payment_done = true" in run.stdout
        assert 'the status page, which says "Thank you for your payment"' in run.stdout
        assert "GetPayment says PAID" in run.stdout
        assert "trial balance of the whole ledger: 0.00 EUR" in run.stdout
        assert "verify: passed" in run.stdout
        assert "PAYOUT_RETURN" in run.stdout
        assert re.search(r"AUTOMATIC +ROUNDING +0.01 EUR  RESOLVED", run.stdout)
        assert re.search(r"FINANCE +AMOUNT_DIFFERS +1.00 EUR  OPEN", run.stdout)
        assert re.search(r"INVESTIGATION +CHARGE_UNKNOWN", run.stdout)
        assert "charged by stripe as pi_" in run.stdout
        lines_wider_than_terminal = [line for line in run.stdout.splitlines() if len(line) > 80]
        assert not lines_wider_than_terminal
        assert re.search(r"payment_intent.succeeded +APPLIED", run.stdout)
    assert wallets_of(first, "seller-books") == [
        "before  0.00 available, 0.00 pending",
        "after   0.00 available, 23.65 pending",
    ]
    assert wallets_of(second, "seller-books") == [
        "before  0.00 available, 24.90 pending",
        "after   0.00 available, 48.55 pending",
    ]
    assert wallets_of(second, "seller-music") == [
        "before  23.02 available, 0.00 pending",
        "after   23.02 available, 9.02 pending",
    ]
    assert {p: p.stat().st_mode for p in before} == before


def test_the_demo_names_each_failure_in_one_sentence(short_folder: Path) -> None:
    """A killed run's server is taken over. Two concurrent runs, a port in use and broken data each
    end in one clear sentence.
    """
    assert run_demo(short_folder).returncode == 0
    with running_demo(short_folder, free_address(), is_killed=True):
        two = run_demo(short_folder)
    assert two.returncode == 1
    assert "Another process uses" in two.stderr
    assert run_demo(short_folder).returncode == 0, (
        "a killed run's PostgreSQL is stopped, and the next run succeeds"
    )
    with socket.create_server(("127.0.0.1", 0)) as occupied_socket:
        busy = run_demo(
            short_folder, TALLYSTICK_SERVER__LISTEN=f"127.0.0.1:{occupied_socket.getsockname()[1]}"
        )
    assert busy.returncode == 1
    assert "address already in use" in busy.stderr
    (short_folder / "postgres" / "data" / "PG_VERSION").unlink()
    demo_result = run_demo(short_folder)
    assert demo_result.returncode == 1
    assert "is not a complete PostgreSQL cluster" in demo_result.stderr
    assert "Traceback" not in demo_result.stderr + busy.stderr + two.stderr


@pytest.mark.parametrize("section", ["server", "http"])
def test_the_demo_is_reachable_from_this_machine_only(short_folder: Path, section: str) -> None:
    """The demo has no authentication, so it does not start where other machines could reach it."""
    token = "0123456789abcdef"
    variable = f"TALLYSTICK_{section.upper()}"
    completed = run_demo(
        short_folder,
        TALLYSTICK_AUTHENTICATION="tokens",
        TALLYSTICK_CALLERS=f"a:service:{token}",
        TALLYSTICK_SERVICE_TOKEN=token,
        **{f"{variable}__LISTEN": "0.0.0.0:7070", f"{variable}__TLS_TERMINATED_BY_PROXY": "true"},
    )
    assert completed.returncode == 1
    assert completed.stderr.strip() == (
        f"demo: {section}.listen ({variable}__LISTEN) must be a loopback address for the demo, "
        "which has no authentication and no TLS."
    )


def test_a_payment_waits_through_a_restart_of_the_demo(short_folder: Path) -> None:
    """A payment that waits for its buyer when the demo is killed succeeds in the next run: the
    look-alike still knows it, and reports it. The killed run may have leased the charge, or its
    webhook, for 60 s.
    """
    address = free_address()
    order = new_order("order-1", "buyer-ada", "seller-books", "24.90", "EUR")
    with running_demo(short_folder, address, is_killed=True), Client(address) as client:
        client.create_payment(
            "checkout-1",
            [order],
            credit_card_info="pm_card_authenticationRequired",
            wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
        )
        pending = payment_pb2.PAYMENT_ORDER_STATUS_PENDING
        assert eventually(
            lambda: (
                client.get_payment("checkout-1").payment_orders[0].payment_order_status == pending
            )
        )
    with running_demo(short_folder, address) as output, Client(address) as client:
        (url,) = re.findall(r"look-alike on (\S+)", output)
        reference = client.get_payment("checkout-1").payment_orders[0].provider_reference
        answer = httpx.post(
            f"{url}/sandbox/advance",
            auth=("sk_test_other", ""),
            data={"id": reference, "status": "succeeded"},
        )
        assert answer.status_code == 200, answer.text
        assert client.wait_for_payment("checkout-1", timeout=90).is_payment_done


def test_a_person_pays_by_the_printed_link(short_folder: Path) -> None:
    """A demo that keeps running prints the page and the status page of a payment that is open. A
    card that is declined leaves it open; the next card pays it.
    """
    address = free_address()
    with running_demo(short_folder, address) as output, Client(address) as client:
        assert "waits for you to pay it in a browser" in output
        (page_url,) = set(re.findall(r"http\S+/c/pay/\S+", output))
        (status_url,) = set(re.findall(r"http\S+/p/\S+", output))
        (checkout,) = re.findall(r"sellers \((demo-\w+)\)", output)
        assert not client.get_payment(f"{checkout}-page").is_payment_done
        with httpx.Client(follow_redirects=True, headers={"Accept-Language": "en"}) as browser:
            assert "Pay 15.00 EUR" in browser.get(page_url).text
            assert "declined" in browser.post(page_url, data={"card": "declined"}).text
            assert "not finished yet" in browser.get(status_url).text
            landed = browser.post(page_url, data={"card": "success"})
            assert str(landed.url.copy_with(query=None)) == status_url
            assert client.wait_for_payment(f"{checkout}-page", timeout=20).is_payment_done
            text = browser.get(status_url).text
            assert "Thank you for your payment" in text
            (continue_url,) = re.findall(r'<a id="continue"[^>]* href="([^"]+)"', text)
            assert browser.get(continue_url).status_code == 200


LIVE_KEYS = ("sk_live_0123456789", "rk_live_0123456789")


@pytest.mark.parametrize("key", LIVE_KEYS)
def test_the_demo_rejects_a_live_key(short_folder: Path, key: str) -> None:
    """A key that moves real money is rejected in one sentence, which does not show it, before
    anything starts.
    """
    completed = run_demo(short_folder, **{API_KEY_VARIABLE: key})
    assert completed.returncode == 1
    assert completed.stderr.strip() == (
        f"demo: providers.stripe.api_key ({API_KEY_VARIABLE}) must be a test key of Stripe for the "
        "demo, sk_test_… or rk_test_…: a live key moves real money."
    )
    assert not completed.stdout
    assert not list(short_folder.iterdir())


@pytest.mark.parametrize("key", LIVE_KEYS)
def test_the_demo_rejects_a_live_key_of_any_provider(tmp_path: Path, key: str) -> None:
    """A live key of another account of Stripe, here in a file, is rejected too."""
    file = tmp_path / "tallystick.toml"
    file.write_text(
        f'[providers.sandbox]\n[providers.stripe_us]\ntype = "stripe"\napi_key = "{key}"\n'
    )
    with pytest.raises(StartupError, match=r"^providers.stripe_us.api_key .* must be a test key"):
        load_demo_settings({"TALLYSTICK_CONFIG": str(file)})


def test_the_demo_rejects_a_key_that_is_none() -> None:
    """A key in another form is rejected with the form that is right."""
    with pytest.raises(StartupError, match=f"{API_KEY_VARIABLE}.* sk_test_, sk_live_") as raised:
        load_demo_settings({API_KEY_VARIABLE: "pk_test_0123456789"})
    assert "pk_test_" not in str(raised.value)


@pytest.mark.parametrize("key", ["sk_test_0123456789", "rk_test_0123456789"])
def test_a_test_key_chooses_stripe_itself(key: str) -> None:
    """With a test key the demo talks to Stripe, with data of its own: operations of the look-alike
    are unknown to Stripe. The sandbox stays configured.
    """
    settings = load_demo_settings({API_KEY_VARIABLE: key, "TALLYSTICK_PROVIDERS__PAYMENT": "other"})
    stripe = stripe_of(settings)
    assert stripe is not None
    assert (stripe.api_key, stripe.url) == (key, "https://api.stripe.com")
    assert (settings.providers.payment, settings.providers.payout) == ("stripe", "stripe")
    assert list(settings.providers.configured) == ["sandbox", "stripe"]
    assert settings.data_dir == Path(".data/stripe")


def test_without_a_key_the_look_alike_is_the_provider() -> None:
    """Without a key charges and payouts go to the look-alike on loopback. The sandbox stays
    configured, because earlier operations in the same data may be its own.
    """
    settings = load_demo_settings({"TALLYSTICK_HTTP__LISTEN": "127.0.0.1:7480"})
    assert stripe_of(settings) is None
    assert settings.data_dir == Path(".data")
    configured = use_look_alike(settings, "http://127.0.0.1:7091", "sk_test_0123456789")
    stripe = stripe_of(configured)
    assert stripe is not None
    assert (stripe.url, stripe.files_base) == ("http://127.0.0.1:7091", "http://127.0.0.1:7091")
    assert stripe.webhook_secrets != stripe.connect_webhook_secrets
    assert (configured.providers.payment, configured.providers.payout) == ("stripe", "stripe")
    assert list(configured.providers.configured) == ["sandbox", "stripe"]
    assert webhook_url(configured) == "http://127.0.0.1:7480/webhooks/stripe"


def test_the_demo_allows_the_example_shop() -> None:
    """Pages may send buyers back to the example shop and the platform itself, besides the origins
    that are configured. Status pages are those of the demo.
    """
    configured = "dev=http://127.0.0.1:9000,shop=https://shop.example"
    settings = load_demo_settings(
        {
            "TALLYSTICK_PAYMENT__RETURN_ORIGINS": configured,
            "TALLYSTICK_HTTP__PUBLIC_URL": "https://pay.example",
        }
    )
    assert public_url(settings) == "http://127.0.0.1:7080"
    assert settings.payment.return_origins == {
        "dev": {"http://127.0.0.1:9000", "http://127.0.0.1:8000", "http://127.0.0.1:7080"},
        "shop": {"https://shop.example"},
    }


def test_the_demo_needs_the_http_server() -> None:
    """Without an address for webhooks the demo does not start."""
    with pytest.raises(StartupError, match=r"^http.listen .* must be an address for the demo"):
        load_demo_settings({"TALLYSTICK_HTTP__LISTEN": ""})


def test_the_demo_at_stripe_itself(short_folder: Path, scratch_database: DatabaseUrls) -> None:
    """With a test key the steps that need the look-alike are left out, and the demo says so. A
    second look-alike is in the place of Stripe.
    """
    database = Database(scratch_database.service("sandbox"), connections=4)

    async def run() -> tuple[str, subprocess.CompletedProcess[str]]:
        async with serve_app(create_app(StripeSandbox(database))) as url:
            environment = {
                API_KEY_VARIABLE: "sk_test_0123456789",
                "TALLYSTICK_PROVIDERS__STRIPE__URL": url,
            }
            return url, await asyncio.to_thread(run_demo, short_folder, **environment)

    url, completed = asyncio.run(run())
    database.close()
    assert completed.returncode == 0, completed.stderr
    assert f"with your test key, at {url}" in completed.stderr
    assert "6  Left out" in completed.stdout
    assert "https://checkout.stripe.com/c/pay/cs_test_" in completed.stdout
    assert "only a person can pay on the page of Stripe" in completed.stdout
    assert "9  Left out" in completed.stdout
    assert completed.stdout.count("charged by stripe as pi_") == 2
    assert "23.65 available, 0.00 pending" in completed.stdout
    assert "verify: passed" in completed.stdout
    assert [path.name for path in short_folder.iterdir()] == ["stripe"]
