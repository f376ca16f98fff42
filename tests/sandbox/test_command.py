"""The look-alike as a process of its own, which may be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from aiohttp import web
from stripe import WebhookSignature

from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import API_KEY
from tests.support.http import serve_app
from tests.support.platform import eventually, free_address

_PAYMENT = "amount=1000&currency=eur&payment_method=pm_card_visa&confirm=true"


@contextmanager
def _process(
    databases: DatabaseUrls, address: str, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tallystick_server.cli.main", "stripe-sandbox", "--port"]
    service_urls = f"sandbox={databases.service('sandbox')}"
    process = subprocess.Popen(
        [*command, address.rpartition(":")[2], *options],
        env={**os.environ, "TALLYSTICK_DATABASE__SERVICE_URLS": service_urls},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def test_a_killed_process_loses_no_answer_and_no_event(scratch_database: DatabaseUrls) -> None:
    """A process is killed after its answer. The next one replays that answer, takes nothing more,
    and delivers the events that were not delivered.
    """
    address = free_address()
    client = httpx.Client(
        base_url=f"http://{address}",
        headers={"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": "k"},
    )

    def pay() -> httpx.Response | None:
        try:
            return client.post("/v1/payment_intents", content=_PAYMENT)
        except httpx.TransportError:  # the server has not started
            return None

    async def run(hook: str) -> None:
        with _process(scratch_database, address, "--webhook-url", hook) as process:
            first = await asyncio.to_thread(eventually, pay)
            assert first is not None
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait, 30)
        received: asyncio.Queue[str] = asyncio.Queue()

        async def receive(request: web.Request) -> web.Response:
            body = await request.text()
            header = request.headers["Stripe-Signature"]
            WebhookSignature.verify_header(body, header, "whsec_sandbox_account", tolerance=300)
            await received.put(body)
            return web.Response()

        app = web.Application()
        app.router.add_post("/hook", receive)
        async with serve_app(app) as url:
            options = ("--webhook-url", f"{url}/hook")
            with _process(scratch_database, address, *options):
                second = await asyncio.to_thread(eventually, pay)
                assert second is not None
                assert (second.status_code, second.content) == (200, first.content)
                assert second.headers["Idempotent-Replayed"] == "true"
                bodies = [await asyncio.wait_for(received.get(), 30) for _ in range(3)]
                assert any("payment_intent.succeeded" in body for body in bodies)

    with client:
        asyncio.run(run(f"http://{free_address()}/hook"))
