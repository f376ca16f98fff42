"""The look-alike of Stripe as the contract needs it: with faults of one movement of a payout, and
with changed answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

import orjson

from tallystick_sandbox.rules import Fault
from tallystick_sandbox.stripe import faults
from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.errors import StripeFailure
from tallystick_sandbox.stripe.faults import HttpAnswer
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_sandbox.stripe.webhooks import ACCOUNT_SECRET, CONNECT_SECRET, WebhookEndpoint
from tallystick_server.providers.stripe.webhooks import CONNECT, PLATFORM
from tallystick_storage.database import Database
from tests.providers.contract import Answer

API_KEY = "sk_test_contract"
ENDPOINTS = (
    WebhookEndpoint("account", PLATFORM, (ACCOUNT_SECRET,)),
    WebhookEndpoint("connect", CONNECT, (CONNECT_SECRET,), is_connect=True),
)
"""The endpoints of the adapter; instead of a URL, each has the adapter's name of it."""

_PAYOUT_FAULTS: Mapping[Answer, tuple[str, Fault]] = {
    Answer.LOST_BEFORE: ("/v1/transfers", Fault.LOST_BEFORE),
    Answer.ERROR_BEFORE: ("/v1/transfers", Fault.ERROR_BEFORE),
    Answer.THROTTLED: ("/v1/transfers", Fault.BUSY),
    Answer.UNAUTHORIZED: ("/v1/payouts", Fault.FORBIDDEN),
    Answer.MALFORMED: ("/v1/payouts", Fault.REJECTED),
    Answer.LOST_AFTER: ("/v1/payouts", Fault.LOST_AFTER),
    Answer.ERROR_AFTER: ("/v1/payouts", Fault.ERROR_AFTER),
    Answer.BATCH_LOST: ("/v1/payouts", Fault.BATCH_LOST),
}
"""The movement that fails for each answer to a payout. An account's token would fail both."""


class ChangedSandbox(StripeSandbox):
    """A look-alike that changes what it answers about some operations."""

    def __init__(self, database: Database) -> None:
        rules = StripeRules(search_lag_seconds=0.0, pays_out_at_once=True)
        super().__init__(database, rules, endpoints=ENDPOINTS)
        self.changes: dict[str, Answer] = {}
        """By the id of the charge or the payout."""
        self._failed: set[str] = set()
        """The payouts that have failed as their answer says."""

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> HttpAnswer:
        form = dict(parse_qsl(body.decode()))
        payout_id = form.get("metadata[payout_id]", "")
        fault = self._payout_fault(payout_id, path) if method == "POST" else Fault.NONE
        try:
            if fault in faults.BEFORE:
                return faults.answer_before(fault)
            answer = await super().handle(method, path, headers, body)
            if fault in faults.AFTER:
                return faults.answer_after(fault, answer)
        except StripeFailure as failure:
            retry_after = {"Retry-After": "1"} if failure.status == 429 else {}
            return HttpAnswer(failure.status, retry_after, orjson.dumps(failure.body))
        return answer._replace(body=self._changed(answer.body)) if answer.status == 200 else answer

    def _payout_fault(self, payout_id: str, path: str) -> Fault:
        answer = self.changes.get(payout_id)
        faulty_path, fault = _PAYOUT_FAULTS.get(answer, ("", Fault.NONE)) if answer else ("", "")
        if path != faulty_path or (payout_id in self._failed and answer is not Answer.MALFORMED):
            return Fault.NONE
        self._failed.add(payout_id)
        return Fault(fault)

    def _changed(self, body: bytes) -> bytes:
        try:
            fields = orjson.loads(body)
        except ValueError:
            return body
        metadata = fields.get("metadata") if isinstance(fields, dict) else None
        if not metadata:
            return body
        operation_id = metadata.get("charge_id") or metadata.get("payout_id")
        match self.changes.get(operation_id):
            case Answer.OTHER_CURRENCY:
                fields["currency"] = "usd"
            case Answer.OTHER_OPERATION:
                metadata |= dict.fromkeys(metadata, "another")
        return orjson.dumps(fields)

    async def fund(self) -> None:
        """Charges a buyer, so that the platform's balance has money for the payouts."""
        form = {
            "amount": 10_000_000,
            "currency": "eur",
            "payment_method": "pm_ok",
            "confirm": "true",
            "automatic_payment_methods[enabled]": "true",
            "automatic_payment_methods[allow_redirects]": "never",
        }
        headers = {"Authorization": f"Bearer {API_KEY}"}
        answer = await self.handle("POST", "/v1/payment_intents", headers, urlencode(form).encode())
        assert answer.status == 200
