"""Who may call what, on whose resources: every method of every service, with every role, for the own and for another owner's resource."""

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
from tallystick.event.v1 import event_service_pb2
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.caller import Caller, Role
from tallystick_server.event import handlers as event
from tallystick_server.ledger import handlers as ledger
from tallystick_server.payment import handlers as payment
from tallystick_server.payout import handlers as payout
from tallystick_server.process.configuration import Settings
from tallystick_server.process.wiring import Ports
from tallystick_server.wallet import handlers as wallet

from .banks import Bank
from .conftest import QUICK, fresh_database, serving, unique
from .test_payout import destination, pay_out, sell

SERVICES = {
    "payment": (payment_service_pb2, payment),
    "ledger": (ledger_service_pb2, ledger),
    "wallet": (wallet_service_pb2, wallet),
    "payout": (payout_service_pb2, payout),
    "event": (event_service_pb2, event),
}
METHODS: dict[str, MethodDescriptor] = {
    f"{name}.{method.name}": method
    for name, (proto, _) in SERVICES.items()
    for method in proto.DESCRIPTOR.services_by_name[f"{name.title()}Service"].methods
}
SEES_ALL = frozenset({Role.OPERATOR, Role.SERVICE, Role.AUDITOR})


class Kind(StrEnum):
    """What a method is about, so what becomes of a call about another owner's."""

    OWNED = "NOT_FOUND"
    """A resource or a seller of an owner."""
    CLAIMED = "ID_TAKEN"
    """A seller that the call would claim."""
    LISTED = "LISTED"
    """Resources, of which a caller gets those of its owner."""
    PLATFORM = "PLATFORM"
    """The platform's own: the role decides alone."""


class Row(NamedTuple):
    """A method's row: what it is about, and its request for the resources of an owner. Unset fields are left empty."""

    kind: Kind
    values: Callable[[Resources], dict[str, Any]] = lambda _: {}


@dataclass(frozen=True)
class Resources:
    """What an owner has."""

    seller: str
    checkout: str
    order: str
    destination: str
    payout: str
    batch: str


def _of(*fields: str) -> Callable[[Resources], dict[str, Any]]:
    """A request that names resources by these fields, with the reason and the id that it may need."""
    names = {
        "checkout_id": "checkout", "payment_order_id": "order", "payout_destination_id": "destination", "payout_id": "payout", "payout_batch_id": "batch",
        "seller_account": "seller",
    }  # fmt: skip
    fixed = {"reason": "for the test", "currency": "EUR", "request_id": "r-1", "page_size": 200, "interval": payout_pb2.PAYOUT_INTERVAL_MANUAL}
    return lambda owner: {field: getattr(owner, names[field]) if field in names else fixed[field] for field in fields}


def _payment(owner: Resources) -> dict[str, Any]:
    id_ = unique("c")
    return {"checkout_id": id_, "payment_orders": [new_order(f"{id_}-1", "buyer-1", owner.seller, "1.00", "EUR")], "credit_card_info": "tok_visa"}


def _bank(owner: Resources) -> dict[str, Any]:
    return {"payout_destination_id": unique("d"), "seller_account": owner.seller, "currency": "EUR", "bank_account_token": "t"}


def _payout(owner: Resources) -> dict[str, Any]:
    return {"payout_id": unique("p"), "seller_account": owner.seller, "currency": "EUR", "amount": "0.01"}


def _run(owner: Resources) -> dict[str, Any]:
    return {"payout_batch_id": unique("b"), "run": payout_service_pb2.NewPayoutRun(seller_account=owner.seller, currency="EUR")}


_OPERATED = ("ListDeadLetters", "GetDeadLetter", "RetryDeadLetter", "CloseDeadLetter", "RetryDeadLetters", "CloseDeadLetters", "ListAlerts")
MATRIX: dict[str, Row] = {
    "payment.CreatePayment": Row(Kind.CLAIMED, _payment),
    "payment.GetPayment": Row(Kind.OWNED, _of("checkout_id")),
    "payment.ListPayments": Row(Kind.LISTED, _of("page_size")),
    "payment.GetPaymentOrder": Row(Kind.OWNED, _of("payment_order_id")),
    "payment.WatchPayment": Row(Kind.OWNED, _of("checkout_id")),
    "payment.CancelPayment": Row(Kind.OWNED, _of("checkout_id", "reason")),
    "payment.ConfirmDelivery": Row(Kind.OWNED, _of("payment_order_id")),
    "payment.ListUnappliedCharges": Row(Kind.PLATFORM),
    "payment.AcknowledgeUnappliedCharge": Row(Kind.PLATFORM),
    "payment.AcknowledgeCharge": Row(Kind.PLATFORM),
    "payout.CreatePayoutDestination": Row(Kind.CLAIMED, _bank),
    "payout.GetPayoutDestination": Row(Kind.OWNED, _of("payout_destination_id")),
    "payout.ListPayoutDestinations": Row(Kind.LISTED, _of("page_size")),
    "payout.ApprovePayoutDestination": Row(Kind.OWNED, _of("payout_destination_id", "reason")),
    "payout.PreviewPayout": Row(Kind.OWNED, _of("seller_account", "currency")),
    "payout.CreatePayout": Row(Kind.OWNED, _payout),
    "payout.GetPayout": Row(Kind.OWNED, _of("payout_id")),
    "payout.ListPayouts": Row(Kind.LISTED, _of("page_size")),
    "payout.WatchPayout": Row(Kind.OWNED, _of("payout_id")),
    "payout.CancelPayout": Row(Kind.OWNED, _of("payout_id", "reason")),
    "payout.RetryPayout": Row(Kind.OWNED, _of("payout_id", "reason", "request_id")),
    "payout.ApprovePayout": Row(Kind.OWNED, _of("payout_id", "reason")),
    "payout.RejectPayout": Row(Kind.OWNED, _of("payout_id", "reason")),
    "payout.AcknowledgePayout": Row(Kind.PLATFORM),
    "payout.CreatePayoutBatch": Row(Kind.OWNED, _run),
    "payout.GetPayoutBatch": Row(Kind.OWNED, _of("payout_batch_id")),
    "payout.SetPayoutSchedule": Row(Kind.OWNED, _of("seller_account", "currency", "interval")),
    "payout.GetPayoutSchedule": Row(Kind.OWNED, _of("seller_account", "currency")),
    "payout.DisablePayoutDestination": Row(Kind.OWNED, _of("payout_destination_id", "reason")),
    "event.StreamEvents": Row(Kind.LISTED),
    **{f"{name}.{method}": Row(Kind.PLATFORM) for name in ("payment", "payout") for method in _OPERATED},
    **{name: Row(Kind.PLATFORM) for name in METHODS if name.startswith(("ledger.", "wallet.")) or name == "event.BatchPublish"},
}


def _token(name: str) -> str:
    return f"token-of-{name}-aaaaaaaa"


@dataclass(frozen=True)
class Office:
    """A platform with a caller of each role, all of one owner, and what that owner and another have."""

    clients: dict[str, Client]
    own: Resources
    others: Resources


@pytest.fixture(scope="module")
def office(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    both = frozenset({Role.TEAM, Role.PAYOUTS})
    callers = {_token(role): Caller(f"our-{role}", frozenset({role}), "ours") for role in Role}
    callers |= {_token("nothing"): Caller("our-nothing", frozenset(), "ours"), _token("ours"): Caller("our-all", both, "ours")}
    callers |= {_token("theirs"): Caller("theirs", both)}
    settings = Settings(
        retry=QUICK, sweep_interval=0.1, authentication="tokens", callers=callers, service_token=_token(Role.SERVICE), payout_waiting_period=0
    )
    folder: Path = tmp_path_factory.mktemp("matrix")
    with ExitStack() as opened:
        known = opened.enter_context(fresh_database(admin_url, folder))
        platform = opened.enter_context(serving(known, settings, ports=Ports(payout_providers={"sandbox": Bank()})))
        clients = {name: opened.enter_context(platform.client(_token(name))) for name in (*Role, "nothing", "nobody", "ours", "theirs")}
        yield Office(clients, _make(clients["ours"]), _make(clients["theirs"]))


def _make(client: Client) -> Resources:
    seller, batch = sell(client, "900.00"), unique("b")
    (order,) = client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest()).payments
    to = destination(client, seller)
    paid = pay_out(client, seller, "1.00")
    line = payout_pb2.NewPayout(payout_id=unique("p"), seller_account=seller, amount="1.00", currency="EUR")
    client.payout.CreatePayoutBatch(
        payout_service_pb2.CreatePayoutBatchRequest(payout_batch_id=batch, list=payout_service_pb2.PayoutList(payouts=[line]))
    )
    return Resources(seller, order.checkout_id, f"{order.checkout_id}-1", to, paid.payout_id, batch)


def _call(client: Client, name: str, request: Message) -> tuple[list[Message], str]:
    """The answer, or the answers of a stream, and the reason of a refusal."""
    service, method = name.split(".")
    try:
        answer = getattr(getattr(client, service), method)(request)
        return (list(answer) if METHODS[name].server_streaming else [answer]), ""
    except TallystickError as error:
        return [], error.reason


def test_every_method_has_a_row() -> None:
    """A method without a row here, or a row without its method, fails: whoever adds one says whose its resources are."""
    assert set(MATRIX) == set(METHODS)


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_a_method_is_for_its_roles_and_for_its_owners_resources(office: Office, name: str) -> None:
    """S2, S3: a role without access is refused by name, another owner's resource as if it were not there, and the own one is found."""
    service, method = name.split(".")
    allowed = SERVICES[service][1].ACCESS[method]
    row, message = MATRIX[name], GetMessageClass(METHODS[name].input_type)
    for role in (*Role, "nothing"):
        for owner in (office.others, office.own):
            answers, reason = _call(office.clients[role], name, message(**row.values(owner)))
            where = (name, role, "own" if owner is office.own else "another's", reason)
            if role not in allowed:
                assert reason == "METHOD_FORBIDDEN", where
                continue
            assert reason not in ("METHOD_FORBIDDEN", "INTERNAL", "CREDENTIALS_INVALID"), where
            if row.kind is Kind.LISTED:
                shown = "".join(str(answer) for answer in answers)
                assert not reason, where
                assert office.own.seller in shown or office.own.checkout in shown, where
                assert (office.others.seller in shown or office.others.checkout in shown) == (role in SEES_ALL), where
            elif row.kind is not Kind.PLATFORM and owner is office.others and role not in SEES_ALL:
                assert reason == row.kind, where
            elif row.kind is not Kind.PLATFORM:
                assert reason not in ("NOT_FOUND", "ID_TAKEN"), where


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_unknown_tokens_reach_no_method(office: Office, name: str) -> None:
    """A caller that nobody knows is refused by every method before its request is read."""
    assert _call(office.clients["nobody"], name, GetMessageClass(METHODS[name].input_type)()) == ([], "CREDENTIALS_INVALID")
