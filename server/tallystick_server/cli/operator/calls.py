"""The calls behind the operator commands, as a client of the running platform. Prints nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tallystick import (
    Client,
    ClientSettings,
    DeadlineExceededError,
    NotFoundError,
    PermissionDeniedError,
    TallystickError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2
from tallystick_core.operations.dead_letter import DeadLetterCause
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_core.payment.checkout import MethodType
from tallystick_server.app.configuration.network import TLS_SCHEME
from tallystick_server.app.errors import StartupError
from tallystick_server.app.services import find_spec
from tallystick_server.app.tls import service_credentials
from tallystick_server.cli.operator.reconciliation_calls import ReconciliationCalls
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import to_timestamp

_DEAD_LETTER_STATES = EnumNames(operator_pb2.DeadLetterState.DESCRIPTOR)
_DEAD_LETTER_CAUSES = EnumNames(operator_pb2.DeadLetterCause.DESCRIPTOR)
_WEBHOOK_EVENT_STATES = EnumNames(operator_pb2.WebhookEventState.DESCRIPTOR)
_METHOD_TYPES = EnumNames(payment_pb2.PaymentMethodType.DESCRIPTOR)
_PAYOUT_STATES = EnumNames(payout_pb2.PayoutState.DESCRIPTOR)
_PAGE_SIZE = 200
_POLL_INTERVAL_SECONDS = 1.0
_CONNECT_TIMEOUT_SECONDS = 3.0
_EXPLAIN_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Selects open dead letters: those that meet every criterion, or all of them."""

    cause: DeadLetterCause | None = None
    provider: str = ""
    from_time: datetime | None = None
    until_time: datetime | None = None
    select_all: bool = False

    def to_message(self) -> operator_pb2.DeadLetterFilter:
        return operator_pb2.DeadLetterFilter(
            cause=_DEAD_LETTER_CAUSES.number(self.cause),
            provider=self.provider,
            from_time=to_timestamp(self.from_time) if self.from_time else None,
            until_time=to_timestamp(self.until_time) if self.until_time else None,
        )


@dataclass(slots=True)
class BulkReport:
    """What a bulk command has done so far."""

    matched: int
    counts: list[operator_pb2.DeadLetterCount]
    """The number of matched dead letters by cause and provider."""
    sample: list[str]
    """Ids of the first matched dead letters; with dry_run only."""
    dry_run: bool
    changed: dict[str, int]
    """The number of changed dead letters by outcome, such as "retried"."""
    skipped: list[Message] = field(default_factory=list)
    processed: int = 0


@contextmanager
def connect(address: str, ca_file: str) -> Iterator[OperatorCalls]:
    """The calls at an address, with the token of TALLYSTICK_TOKEN. `ca_file`: the setting
    `service_ca_file`. Raises StartupError if a call fails.
    """
    token = os.environ.get("TALLYSTICK_TOKEN", "")
    if not all("!" <= character <= "~" for character in token):
        raise StartupError("TALLYSTICK_TOKEN must be visible ASCII characters.")
    if address.startswith("http://"):
        raise StartupError("--address must be HOST:PORT, or https://HOST:PORT for TLS.")
    has_tls = address.startswith(TLS_SCHEME)
    _require_reachable(address, service_credentials(ca_file) if has_tls else None)
    settings = ClientSettings(token=token, ca_file=ca_file if has_tls else "")
    try:
        with Client(address, settings=settings) as client:
            yield OperatorCalls(client)
    except UnauthenticatedError as error:
        advice = "Set TALLYSTICK_TOKEN." if not token else "Check TALLYSTICK_TOKEN."
        raise StartupError(f"{address}: {error} {advice}") from None
    except TallystickError as error:
        if error.reason:
            raise StartupError(f"{address}: {error}") from None
        raise _unreachable_error(address, error.message) from None


def _require_reachable(address: str, credentials: grpc.ChannelCredentials | None) -> None:
    """Raises StartupError if nothing answers at the address. The client's calls would retry until
    their deadlines.
    """
    with (
        grpc.insecure_channel(address)
        if credentials is None
        else grpc.secure_channel(address.removeprefix(TLS_SCHEME), credentials)
    ) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            stub.Check(health_pb2.HealthCheckRequest(), timeout=_CONNECT_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                detail = f"no answer within {_CONNECT_TIMEOUT_SECONDS:g} s"
                raise _unreachable_error(address, detail) from None
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                detail = (error.details() or "").rpartition("last error: ")[2]
                raise _unreachable_error(address, detail) from None


def _unreachable_error(address: str, detail: str) -> StartupError:
    return StartupError(
        f"Cannot reach the platform at {address}: {detail.rstrip('.')}. Start it with "
        "'tallystick serve all', or name its address with --address."
    )


class OperatorCalls:
    """Each method is one operator command."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.reconciliation = ReconciliationCalls(client)

    def list_webhook_events(
        self, service: str, state: WebhookEventState | None, provider: str, reference: str
    ) -> Iterator[Message]:
        return self._list(
            service,
            "WebhookEvents",
            "webhook_events",
            state=_WEBHOOK_EVENT_STATES.number(state),
            provider=provider,
            reference=reference,
        )

    def show_webhook_event(self, service: str, webhook_event_id: str) -> Any:
        response = self._call(service, "GetWebhookEvent", webhook_event_id=webhook_event_id)
        return response.webhook_event

    def replay_webhook_event(self, service: str, webhook_event_id: str, reason: str) -> Any:
        response = self._call(
            service, "ReplayWebhookEvent", webhook_event_id=webhook_event_id, reason=reason
        )
        return response.webhook_event

    def list_dead_letters(self, service: str, *, include_ended: bool) -> Iterator[Message]:
        state = _DEAD_LETTER_STATES.number("" if include_ended else "OPEN")
        return self._list(service, "DeadLetters", "dead_letters", state=state)

    def show_dead_letter(self, service: str, dead_letter_id: str) -> Any:
        return self._call(service, "GetDeadLetter", dead_letter_id=dead_letter_id)

    def retry_dead_letter(self, service: str, dead_letter_id: str, reason: str) -> Any:
        return self._call(service, "RetryDeadLetter", dead_letter_id=dead_letter_id, reason=reason)

    def close_dead_letter(
        self, service: str, dead_letter_id: str, reason: str, evidence: str
    ) -> Any:
        return self._call(
            service,
            "CloseDeadLetter",
            dead_letter_id=dead_letter_id,
            reason=reason,
            evidence=evidence,
        )

    def retry_dead_letters(
        self, service: str, selection: DeadLetterFilter, reason: str, *, dry_run: bool
    ) -> Iterator[BulkReport]:
        """Yields the report after the count and after each page."""
        values = {"reason": reason}
        return self._run_bulk(
            service, "RetryDeadLetters", ("retried",), selection, values, dry_run=dry_run
        )

    def close_dead_letters(
        self,
        service: str,
        selection: DeadLetterFilter,
        reason: str,
        evidence: str,
        *,
        dry_run: bool,
    ) -> Iterator[BulkReport]:
        """Yields the report after the count and after each page."""
        values = {"reason": reason, "evidence": evidence}
        return self._run_bulk(
            service, "CloseDeadLetters", ("closed", "resolved"), selection, values, dry_run=dry_run
        )

    def _run_bulk(
        self,
        service: str,
        method: str,
        outcomes: tuple[str, ...],
        selection: DeadLetterFilter,
        values: dict[str, str],
        *,
        dry_run: bool,
    ) -> Iterator[BulkReport]:
        request = {"filter": selection.to_message(), "all": selection.select_all, **values}
        preview = self._call(service, method, dry_run=True, **request)
        report = BulkReport(
            matched=preview.matched,
            counts=list(preview.counts),
            sample=list(preview.sample) if dry_run else [],
            dry_run=dry_run,
            changed=dict.fromkeys(outcomes, 0),
        )
        yield report
        has_more, token = not dry_run, ""
        while has_more:
            try:
                page = self._call(service, method, page_token=token, **request)
            except TallystickError as error:
                raise error.with_message(
                    f"{error.message.rstrip('.')}; stopped after {report.processed} of "
                    f"{report.matched} dead letters."
                ) from None
            report.processed += page.matched
            for outcome in outcomes:
                report.changed[outcome] += getattr(page, outcome)
            report.skipped += page.skipped
            yield report
            token = page.next_page_token
            has_more = bool(token)

    def list_unapplied_charges(self, *, include_acknowledged: bool) -> Iterator[Message]:
        return self._list(
            "payment", "UnappliedCharges", "unapplied_charges", acknowledged=include_acknowledged
        )

    def acknowledge_unapplied_charge(self, unapplied_charge_id: str, reason: str) -> Message:
        request = payment_service_pb2.AcknowledgeUnappliedChargeRequest(
            unapplied_charge_id=unapplied_charge_id, reason=reason
        )
        return self._client.payment.AcknowledgeUnappliedCharge(request).unapplied_charge

    def preview_routing(
        self,
        currency: str,
        amount: str,
        country: str,
        method: MethodType,
        sellers: Sequence[str],
        checkout_id: str,
        caller: str,
    ) -> Message:
        return self._client.payment.PreviewRouting(
            payment_service_pb2.PreviewRoutingRequest(
                currency=currency,
                amount=amount,
                buyer_country=country,
                payment_method_type=_METHOD_TYPES.number(method),
                seller_accounts=sellers,
                checkout_id=checkout_id,
                caller=caller,
            )
        )

    def explain(self, id_: str) -> Any:
        """The explanation of the payment or payout that an id names; without statements if
        ReconciliationService cannot be asked.
        """
        request = reconciliation_service_pb2.ExplainRequest(id=id_)
        try:
            return self._client.reconciliation.Explain(
                request, timeout=_EXPLAIN_TIMEOUT_SECONDS
            ).explanation
        except (
            DeadlineExceededError,
            PermissionDeniedError,
            UnavailableError,
            UnimplementedError,
        ) as error:
            explanation = self._explain_without_statements(id_)
            explanation.omissions.append(
                f"ReconciliationService did not explain it ({error.message.rstrip('.')}); its "
                "statement lines and breaks are missing."
            )
            return explanation

    def _explain_without_statements(self, id_: str) -> Any:
        try:
            return self._call("payment", "ExplainPayment", id=id_).explanation
        except NotFoundError:
            return self._explain_payout(id_)

    def _explain_payout(self, id_: str) -> Any:
        try:
            return self._call("payout", "ExplainPayout", id=id_).explanation
        except NotFoundError as error:
            raise error.with_message(f"There is no payment or payout with the id {id_}.") from None

    def list_alerts(self, service: str, *, include_ended: bool) -> Iterator[Message]:
        return self._list(service, "Alerts", "alerts", ended=include_ended)

    def list_payouts(self, state: str, seller_account: str) -> Iterator[Message]:
        return self._list(
            "payout",
            "Payouts",
            "payouts",
            payout_state=_PAYOUT_STATES.number(state),
            seller_account=seller_account,
        )

    def show_payout(self, payout_id: str) -> Any:
        return self._call("payout", "GetPayout", payout_id=payout_id)

    def decide_payout(self, method: str, payout_id: str, reason: str) -> Message:
        """The payout after ApprovePayout, RejectPayout or CancelPayout."""
        payout: Message = self._call("payout", method, payout_id=payout_id, reason=reason).payout
        return payout

    def acknowledge_payout(
        self, payout_id: str, reason: str, *, transfer: str, report: int | None
    ) -> Message:
        request = payout_service_pb2.AcknowledgePayoutRequest(payout_id=payout_id, reason=reason)
        if report is not None:
            request.report_number = report
        else:
            request.provider_reference = transfer
        return self._client.payout.AcknowledgePayout(request).payout

    def watch_batch(self, payout_batch_id: str, *, follow: bool) -> Iterator[Any]:
        """Yields the batch; with `follow` again each second until it is done."""
        request = payout_service_pb2.GetPayoutBatchRequest(
            payout_batch_id=payout_batch_id, page_size=1
        )
        while True:
            batch = self._client.payout.GetPayoutBatch(request).payout_batch
            yield batch
            if not follow or batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE:
                return
            time.sleep(_POLL_INTERVAL_SECONDS)

    def _call(self, service: str, method: str, **values: Any) -> Any:
        request = _request_class(service, method)(**values)
        return getattr(getattr(self._client, service), method)(request)

    def _list(self, service: str, resources: str, field_name: str, **values: Any) -> Iterator[Any]:
        """The resources of all pages."""
        request = _request_class(service, f"List{resources}")(page_size=_PAGE_SIZE, **values)
        method = getattr(getattr(self._client, service), f"List{resources}")
        return self._client.pages(method, request, field_name)


def _request_class(service: str, method: str) -> Any:
    return GetMessageClass(find_spec(service).descriptor.methods_by_name[method].input_type)
