"""The buyer's status page without a platform: the test says what RefreshBuyerStatus answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from tallystick.payment.v1.payment_pb2 import BuyerAmount, BuyerStatus, PaymentState
from tallystick.payment.v1.payment_service_pb2 import (
    RefreshBuyerStatusRequest,
    RefreshBuyerStatusResponse,
)
from tallystick_server.http.status_page.page import StatusPage
from tallystick_server.rpc.service_client import ServiceClient
from tests.support.http import serve_routes

TOKEN = "Zm9vYmFyYmF6LXN0YXR1cy10b2tlbg"
UPDATE_TIME = datetime(2026, 11, 30, 12, 0, 5, 123, tzinfo=UTC)
RESOLVE_BY_TIME = UPDATE_TIME + timedelta(hours=5)


def buyer_status(state: PaymentState.ValueType, **values: Any) -> BuyerStatus:
    """A payment of 129.90 EUR at a shop."""
    fields: dict[str, Any] = {
        "requested_amounts": [BuyerAmount(amount="129.90", currency="EUR")],
        "success_url": "https://shop.example/thanks",
        "cancel_url": "https://shop.example/cart",
        "update_time": UPDATE_TIME,
        "version": 3,
    }
    return BuyerStatus(payment_state=state, **(fields | values))


class BuyerStatuses:
    """RefreshBuyerStatus of a service that knows one token. `answer`: what it answers: a status, a
    gRPC code, or None: never.
    """

    def __init__(self, answer: BuyerStatus | grpc.StatusCode | None) -> None:
        self.answer = answer
        self.requests: list[RefreshBuyerStatusRequest] = []

    async def refresh(
        self, request: RefreshBuyerStatusRequest, **_: Any
    ) -> RefreshBuyerStatusResponse:
        self.requests.append(request)
        if self.answer is None:
            await asyncio.Event().wait()
        answer = self.answer if request.status_token == TOKEN else grpc.StatusCode.NOT_FOUND
        if isinstance(answer, grpc.StatusCode):
            no_metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(answer, no_metadata, no_metadata, request.status_token)
        return RefreshBuyerStatusResponse(buyer_status=answer)


@contextmanager
def serve_status_page(statuses: BuyerStatuses) -> Iterator[str]:
    """Serves the page until the block ends; the URL of the server."""
    with serve_routes(lambda: StatusPage(statuses.refresh, ServiceClient()).routes()) as url:
        yield url
