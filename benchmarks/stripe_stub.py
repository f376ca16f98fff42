"""A provider that costs almost nothing: it answers as Stripe does for PaymentIntents, from memory.
Each is in review until POST /pay ends the review of all.

python -m benchmarks.stripe_stub HOST:PORT
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from aiohttp import web

from tallystick_server.app.serve import run


class StripeStub:
    """PaymentIntents by their ids."""

    def __init__(self) -> None:
        self._intents: dict[str, dict[str, Any]] = {}

    async def create(self, request: web.Request) -> web.Response:
        form = await request.post()
        charge_id = str(form["metadata[charge_id]"])
        intent = {
            "object": "payment_intent",
            "id": f"pi_{charge_id}",
            "status": "processing",
            "amount": int(str(form["amount"])),
            "amount_received": 0,
            "currency": str(form["currency"]),
            "metadata": {"charge_id": charge_id, "key": str(form["metadata[key]"])},
        }
        self._intents[f"pi_{charge_id}"] = intent
        return web.json_response(intent)

    async def retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(self._intents[request.match_info["id"]])

    async def pay(self, _request: web.Request) -> web.Response:
        for intent in self._intents.values():
            intent |= {"status": "succeeded", "amount_received": intent["amount"]}
        return web.json_response({})


async def _serve(address: str) -> None:
    host, _, port = address.rpartition(":")
    stub, app = StripeStub(), web.Application()
    app.router.add_post("/v1/payment_intents", stub.create)
    app.router.add_get("/v1/payment_intents/{id}", stub.retrieve)
    app.router.add_post("/pay", stub.pay)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, int(port)).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    run(_serve(sys.argv[1]))
