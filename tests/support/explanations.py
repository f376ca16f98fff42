"""Explanations as tests read them."""

from __future__ import annotations

import re

from tallystick import Client
from tallystick.history.v1 import explanation_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick_server.rpc.enums import EnumNames

_ACTORS = EnumNames(explanation_pb2.Actor.DESCRIPTOR)
_SOURCES = EnumNames(explanation_pb2.ExplanationSource.DESCRIPTOR)


def explain_payment(client: Client, id_: str) -> explanation_pb2.Explanation:
    """The explanation of a payment, after a check of its form."""
    request = payment_service_pb2.ExplainPaymentRequest(id=id_)
    return check_form(client.payment.ExplainPayment(request).explanation)


def check_form(explanation: explanation_pb2.Explanation) -> explanation_pb2.Explanation:
    """The explanation, whose texts are sentences, and whose entries are in the order of time."""
    assert explanation.next_steps
    texts = [explanation.summary, *(step.action for step in explanation.next_steps)]
    texts += [text for entry in explanation.entries for text in (entry.title, entry.detail)]
    for sentence in filter(None, [*texts, *explanation.omissions]):
        assert re.fullmatch(r"\S.*[.\"]", sentence), sentence
    times = [entry.time.ToNanoseconds() for entry in explanation.entries]
    assert times == sorted(times)
    return explanation


def actors(explanation: explanation_pb2.Explanation) -> list[str]:
    """Who acts next, in order."""
    return [_ACTORS.parse(step.actor, "actor") for step in explanation.next_steps]


def actions(explanation: explanation_pb2.Explanation) -> str:
    """All next steps in one text."""
    return " ".join(step.action for step in explanation.next_steps)


def story(explanation: explanation_pb2.Explanation) -> str:
    """All entries in one text."""
    return " ".join(f"{entry.title} {entry.detail}" for entry in explanation.entries)


def sources(explanation: explanation_pb2.Explanation) -> list[str]:
    """Where the entries are stored, in order."""
    return [_SOURCES.parse(entry.source, "source") for entry in explanation.entries]


def explain_payout(client: Client, id_: str) -> explanation_pb2.Explanation:
    """The explanation of a payout, after a check of its form."""
    request = payout_service_pb2.ExplainPayoutRequest(id=id_)
    return check_form(client.payout.ExplainPayout(request).explanation)
