"""Payments by JSON over HTTP, with the retries of a careful caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import httpx
from google.protobuf.json_format import MessageToDict, ParseDict

from tallystick import TallystickError
from tallystick.payment.v1 import payment_pb2, payment_service_pb2

_DEADLINE_SECONDS = 8.0
_TRIES = 4
_FIRST_WAIT_SECONDS = 0.3


class JsonClient:
    """Creates payments at the HTTP server at an address. `jitter`: a random share of a wait."""

    def __init__(self, address: str, jitter: Callable[[], float]) -> None:
        self._client = httpx.AsyncClient(
            base_url=f"http://{address}",
            headers={"Request-Timeout": str(_DEADLINE_SECONDS)},
            timeout=_DEADLINE_SECONDS + 1,
            trust_env=False,
        )
        self._jitter = jitter
        self.call_count = self.retry_count = 0

    async def create_payment(
        self,
        checkout_id: str,
        payment_orders: Sequence[payment_pb2.NewPaymentOrder],
        *,
        credit_card_info: str,
    ) -> payment_pb2.Payment:
        """As `AsyncClient.create_payment`. Retries a call that was not answered, or may be retried.
        Raises TallystickError.
        """
        request = payment_service_pb2.CreatePaymentRequest(
            checkout_id=checkout_id,
            payment_orders=payment_orders,
            credit_card_info=credit_card_info,
        )
        body = MessageToDict(request, preserving_proto_field_name=True)
        self.call_count += 1
        for try_number in range(_TRIES):
            try:
                return await self._create(checkout_id, body)
            except TallystickError as error:
                if not error.may_retry or try_number == _TRIES - 1:
                    raise
                self.retry_count += 1
                wait = _FIRST_WAIT_SECONDS * 2**try_number * (1 + self._jitter())
                await asyncio.sleep(max(wait, error.retry_after or 0.0))
        raise AssertionError

    async def _create(self, checkout_id: str, body: object) -> payment_pb2.Payment:
        try:
            response = await self._client.post(
                "/v1/payments", json=body, headers={"Idempotency-Key": checkout_id}
            )
        except httpx.TransportError as error:  # the process was killed, or is frozen
            raise TallystickError(type(error).__name__, retry_after=0.0) from error
        if response.is_success:
            return ParseDict(response.json()["payment"], payment_pb2.Payment())
        raise _to_error(response)

    async def close(self) -> None:
        await self._client.aclose()


def _to_error(response: httpx.Response) -> TallystickError:
    status = response.json()
    retry_after = response.headers.get("Retry-After")
    return TallystickError(
        status["message"],
        reason=status["details"][0]["reason"],
        retry_after=None if retry_after is None else float(retry_after),
    )
