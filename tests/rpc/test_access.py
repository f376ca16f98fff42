"""Access to every method of every service, with every role, for the caller's own resource and for
another owner's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tallystick import Client, TallystickError, new_order
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick_core.access import Caller, Role
from tallystick_server.app.configuration import Settings
from tallystick_server.app.services import SERVICES, find_spec
from tallystick_server.app.wiring import Dependencies, implementation_of
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import token_of
from tests.support.payouts import create_destination, create_payout, create_sale
from tests.support.platform import FAST_RETRY, fresh_database, serve_platform, unique_id

METHODS: dict[str, MethodDescriptor] = {
    f"{spec.name}.{method.name}": method for spec in SERVICES for method in spec.descriptor.methods
}
ALL_OWNERS_ROLES = frozenset({Role.OPERATOR, Role.SERVICE, Role.AUDITOR})


class MethodScope(StrEnum):
    """What a method's request names, which determines the result of a call about another owner's
    resource.
    """

    OWNED = "NOT_FOUND"
    """A resource or a seller of an owner."""
    CLAIMS_SELLER = "ALREADY_EXISTS"
    """A seller that the call would claim."""
    LISTED = "LISTED"
    """A list; a caller gets only its owner's resources."""
    PLATFORM = "PLATFORM"
    """A platform resource: only the role counts."""


class MethodRow(NamedTuple):
    """A method's row: its subject, and its request for the resources of an owner. Unset fields are
    left empty.
    """

    kind: MethodScope
    values: Callable[[OwnedResources], dict[str, Any]] = lambda _: {}


@dataclass(frozen=True)
class OwnedResources:
    """The resources of an owner."""

    seller: str
    checkout: str
    order: str
    destination: str
    payout: str
    batch: str


def _request_with(*fields: str) -> Callable[[OwnedResources], dict[str, Any]]:
    """A request that names resources by these fields, with the reason and the id that it may
    require.
    """
    resource_fields = {
        "checkout_id": "checkout",
        "payment_order_id": "order",
        "payout_destination_id": "destination",
        "payout_id": "payout",
        "payout_batch_id": "batch",
        "seller_account": "seller",
    }
    fixed_values = {
        "reason": "for the test",
        "currency": "EUR",
        "request_id": "r-1",
        "page_size": 200,
        "interval": payout_pb2.PAYOUT_INTERVAL_MANUAL,
    }
    return lambda owner: {
        field: getattr(owner, resource_fields[field])
        if field in resource_fields
        else fixed_values[field]
        for field in fields
    }


def _payment_request(owner: OwnedResources) -> dict[str, Any]:
    id_ = unique_id("c")
    return {
        "checkout_id": id_,
        "payment_orders": [new_order(f"{id_}-1", "buyer-1", owner.seller, "1.00", "EUR")],
        "credit_card_info": "tok_visa",
    }


def _destination_request(owner: OwnedResources) -> dict[str, Any]:
    return {
        "payout_destination_id": unique_id("d"),
        "seller_account": owner.seller,
        "currency": "EUR",
        "bank_account_token": "t",
    }


def _payout_request(owner: OwnedResources) -> dict[str, Any]:
    return {
        "payout_id": unique_id("p"),
        "seller_account": owner.seller,
        "currency": "EUR",
        "amount": "0.01",
    }


def _run_request(owner: OwnedResources) -> dict[str, Any]:
    return {
        "payout_batch_id": unique_id("b"),
        "run": payout_service_pb2.NewPayoutRun(seller_account=owner.seller, currency="EUR"),
    }


_SHARED_METHODS = (
    "ListDeadLetters",
    "GetDeadLetter",
    "RetryDeadLetter",
    "CloseDeadLetter",
    "RetryDeadLetters",
    "CloseDeadLetters",
    "BatchReceiveWebhookEvents",
    "ListWebhookEvents",
    "GetWebhookEvent",
    "ReplayWebhookEvent",
    "ListAlerts",
)
MATRIX: dict[str, MethodRow] = {
    "payment.CreatePayment": MethodRow(MethodScope.CLAIMS_SELLER, _payment_request),
    "payment.GetPayment": MethodRow(MethodScope.OWNED, _request_with("checkout_id")),
    "payment.ListPayments": MethodRow(MethodScope.LISTED, _request_with("page_size")),
    "payment.GetPaymentOrder": MethodRow(MethodScope.OWNED, _request_with("payment_order_id")),
    "payment.ExplainPayment": MethodRow(MethodScope.OWNED, lambda owner: {"id": owner.checkout}),
    "payment.WatchPayment": MethodRow(MethodScope.OWNED, _request_with("checkout_id")),
    "payment.CancelPayment": MethodRow(MethodScope.OWNED, _request_with("checkout_id", "reason")),
    "payment.ConfirmDelivery": MethodRow(MethodScope.OWNED, _request_with("payment_order_id")),
    "payment.PreviewRouting": MethodRow(MethodScope.PLATFORM),
    "payment.CreateStatusLink": MethodRow(MethodScope.OWNED, _request_with("checkout_id")),
    "payment.RevokeStatusLink": MethodRow(MethodScope.OWNED, _request_with("checkout_id")),
    "payment.RefreshBuyerStatus": MethodRow(MethodScope.PLATFORM),
    "payment.ListUnappliedCharges": MethodRow(MethodScope.PLATFORM),
    "payment.AcknowledgeUnappliedCharge": MethodRow(MethodScope.PLATFORM),
    "payment.AcknowledgeCharge": MethodRow(MethodScope.PLATFORM),
    "payment.GetCaller": MethodRow(MethodScope.PLATFORM),
    "payout.CreatePayoutDestination": MethodRow(MethodScope.CLAIMS_SELLER, _destination_request),
    "payout.GetPayoutDestination": MethodRow(
        MethodScope.OWNED, _request_with("payout_destination_id")
    ),
    "payout.ListPayoutDestinations": MethodRow(MethodScope.LISTED, _request_with("page_size")),
    "payout.ApprovePayoutDestination": MethodRow(
        MethodScope.OWNED, _request_with("payout_destination_id", "reason")
    ),
    "payout.PreviewPayout": MethodRow(
        MethodScope.OWNED, _request_with("seller_account", "currency")
    ),
    "payout.CreatePayout": MethodRow(MethodScope.OWNED, _payout_request),
    "payout.GetPayout": MethodRow(MethodScope.OWNED, _request_with("payout_id")),
    "payout.ExplainPayout": MethodRow(MethodScope.OWNED, lambda owner: {"id": owner.payout}),
    "payout.ListPayouts": MethodRow(MethodScope.LISTED, _request_with("page_size")),
    "payout.WatchPayout": MethodRow(MethodScope.OWNED, _request_with("payout_id")),
    "payout.CancelPayout": MethodRow(MethodScope.OWNED, _request_with("payout_id", "reason")),
    "payout.RetryPayout": MethodRow(
        MethodScope.OWNED, _request_with("payout_id", "reason", "request_id")
    ),
    "payout.ApprovePayout": MethodRow(MethodScope.OWNED, _request_with("payout_id", "reason")),
    "payout.RejectPayout": MethodRow(MethodScope.OWNED, _request_with("payout_id", "reason")),
    "payout.AcknowledgePayout": MethodRow(MethodScope.PLATFORM),
    "payout.CreatePayoutBatch": MethodRow(MethodScope.OWNED, _run_request),
    "payout.GetPayoutBatch": MethodRow(MethodScope.OWNED, _request_with("payout_batch_id")),
    "payout.SetPayoutSchedule": MethodRow(
        MethodScope.OWNED, _request_with("seller_account", "currency", "interval")
    ),
    "payout.GetPayoutSchedule": MethodRow(
        MethodScope.OWNED, _request_with("seller_account", "currency")
    ),
    "payout.DisablePayoutDestination": MethodRow(
        MethodScope.OWNED, _request_with("payout_destination_id", "reason")
    ),
    "event.StreamEvents": MethodRow(MethodScope.LISTED),
    **{
        f"{name}.{method}": MethodRow(MethodScope.PLATFORM)
        for name in ("payment", "payout")
        for method in _SHARED_METHODS
    },
    **{
        name: MethodRow(MethodScope.PLATFORM)
        for name in METHODS
        if name.startswith(("ledger.", "wallet.", "reconciliation.", "monitoring."))
        or name in ("event.BatchPublish", "event.ListEvents")
    },
}


@dataclass(frozen=True)
class AccessPlatform:
    """A platform with a caller of each role, all of one owner, and the resources of that owner and
    another.
    """

    clients: dict[str, Client]
    own_resources: OwnedResources
    other_resources: OwnedResources


@pytest.fixture(scope="module")
def access_platform(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AccessPlatform]:
    team_roles = frozenset({Role.TEAM, Role.PAYOUTS})
    callers = {token_of(role): Caller(f"our-{role}", frozenset({role}), "ours") for role in Role}
    callers |= {
        token_of("nothing"): Caller("our-nothing", frozenset(), "ours"),
        token_of("ours"): Caller("our-all", team_roles, "ours"),
    }
    callers |= {token_of("theirs"): Caller("theirs", team_roles)}
    settings = Settings().replace(
        retry=FAST_RETRY,
        worker__scan_interval=0.1,
        authentication="tokens",
        callers=callers,
        service_token=token_of(Role.SERVICE),
        payout__destination_cooldown=0,
    )
    folder: Path = tmp_path_factory.mktemp("matrix")
    with ExitStack() as stack:
        databases = stack.enter_context(fresh_database(admin_url, folder))
        platform = stack.enter_context(
            serve_platform(
                databases,
                settings,
                dependencies=Dependencies(payout_providers={"sandbox": ScriptedPayoutProvider()}),
            )
        )
        clients = {
            name: stack.enter_context(platform.client(token_of(name)))
            for name in (*Role, "nothing", "nobody", "ours", "theirs")
        }
        yield AccessPlatform(
            clients, _create_resources(clients["ours"]), _create_resources(clients["theirs"])
        )


def _create_resources(client: Client) -> OwnedResources:
    seller, batch = create_sale(client, "900.00"), unique_id("b")
    (order,) = client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest()).payments
    destination_id = create_destination(client, seller)
    created_payout = create_payout(client, seller, "1.00")
    new_payout = payout_pb2.NewPayout(
        payout_id=unique_id("p"), seller_account=seller, amount="1.00", currency="EUR"
    )
    client.payout.CreatePayoutBatch(
        payout_service_pb2.CreatePayoutBatchRequest(
            payout_batch_id=batch, list=payout_service_pb2.PayoutList(payouts=[new_payout])
        )
    )
    return OwnedResources(
        seller,
        order.checkout_id,
        f"{order.checkout_id}-1",
        destination_id,
        created_payout.payout_id,
        batch,
    )


def _call(client: Client, name: str, request: Message) -> tuple[list[Message], str]:
    """The answer, or the answers of a stream, and the reason of a rejection."""
    service, method = name.split(".")
    try:
        response = getattr(getattr(client, service), method)(request)
        return (list(response) if METHODS[name].server_streaming else [response]), ""
    except TallystickError as error:
        return [], error.reason


def test_every_method_has_a_row() -> None:
    """The test fails for a method without a row, or a row without its method: every new method must
    declare its subject.
    """
    assert set(MATRIX) == set(METHODS)


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_a_method_requires_its_role_and_own_resources(
    access_platform: AccessPlatform, name: str
) -> None:
    """S2, S3: a role without access is rejected with its own reason, another owner's resource is
    reported as missing, and the own resource is found.
    """
    service, method = name.split(".")
    allowed = implementation_of(find_spec(service)).access[method]
    row, message = MATRIX[name], GetMessageClass(METHODS[name].input_type)
    for role in (*Role, "nothing"):
        for owner in (access_platform.other_resources, access_platform.own_resources):
            responses, reason = _call(
                access_platform.clients[role], name, message(**row.values(owner))
            )
            where = (
                name,
                role,
                "own" if owner is access_platform.own_resources else "another's",
                reason,
            )
            if role not in allowed:
                assert reason == "PERMISSION_DENIED", where
                continue
            assert reason not in ("PERMISSION_DENIED", "INTERNAL", "CREDENTIALS_INVALID"), where
            if row.kind is MethodScope.LISTED:
                response_text = "".join(str(answer) for answer in responses)
                assert not reason, where
                assert (
                    access_platform.own_resources.seller in response_text
                    or access_platform.own_resources.checkout in response_text
                ), where
                assert (
                    access_platform.other_resources.seller in response_text
                    or access_platform.other_resources.checkout in response_text
                ) == (role in ALL_OWNERS_ROLES), where
            elif (
                row.kind is not MethodScope.PLATFORM
                and owner is access_platform.other_resources
                and role not in ALL_OWNERS_ROLES
            ):
                assert reason == row.kind, where
            elif row.kind is not MethodScope.PLATFORM:
                assert reason not in ("NOT_FOUND", "ALREADY_EXISTS"), where


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_unknown_tokens_are_rejected_by_every_method(
    access_platform: AccessPlatform, name: str
) -> None:
    """Every method rejects an unknown caller before its request is parsed."""
    assert _call(
        access_platform.clients["nobody"], name, GetMessageClass(METHODS[name].input_type)()
    ) == ([], "CREDENTIALS_INVALID")
