"""Signatures of Stripe's webhooks, over the raw body and its time."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Sequence
from datetime import timedelta

import orjson
import pytest
import stripe

from tallystick_core.provider.webhook import InvalidSignature
from tallystick_server.providers.stripe.webhooks import StripeWebhooks
from tests.providers.stripe.scripted_stripe import ScriptedTransport, api_of, settings_with
from tests.providers.stripe.test_webhooks import (
    BODY,
    CONNECT,
    EVENT,
    NEW,
    NOW,
    OLD,
    parse,
    sign,
    source,
)


def test_each_endpoint_has_its_secrets() -> None:
    """A body that one of the endpoint's secrets has signed is read; the other endpoint rejects
    it. While secrets are replaced, either of them counts, and so does a header with both.
    """
    assert tuple(source().endpoints) == ("", "connect")
    for secrets in ((OLD,), (NEW,), (OLD, NEW), ("whsec_another", NEW)):
        assert parse(BODY, sign(BODY, *secrets)) == EVENT
        with pytest.raises(InvalidSignature):
            parse(BODY, sign(BODY, *secrets), "connect")
    assert parse(BODY, sign(BODY, CONNECT), "connect") == EVENT
    with pytest.raises(InvalidSignature):
        parse(BODY, sign(BODY, CONNECT))
    with pytest.raises(InvalidSignature):
        parse(BODY, sign(BODY, OLD), "another")


def test_an_endpoint_without_secrets_is_none() -> None:
    """An installation that has no connected accounts has one endpoint."""
    webhooks_ = StripeWebhooks(
        "stripe", settings_with(webhook_secrets=[OLD]), api_of(ScriptedTransport())
    )
    assert tuple(webhooks_.endpoints) == ("",)


def test_a_forged_body_is_rejected() -> None:
    """Another secret, another scheme, a body that differs by one byte or is encoded again, and
    every header that is none.
    """
    good = sign(BODY, OLD)
    forged: Sequence[tuple[bytes, str]] = (
        (BODY, sign(BODY, "whsec_another")),
        (BODY, sign(BODY, OLD, scheme="v0")),
        (BODY.replace(b"pi_1", b"pi_2"), good),
        (orjson.dumps(orjson.loads(BODY), option=orjson.OPT_INDENT_2), good),
        (BODY + b"\n", good),
        (b"", good),
        (BODY, ""),
        (BODY, "t=,v1="),
        (BODY, f"t={int(NOW.timestamp())}"),
        (BODY, good.replace("t=", "t=-")),
        (BODY, good.partition(",")[2]),
        (BODY, good.replace("v1=", "v1=é")),
        (BODY, "t=" + "9" * 400 + ",v1=" + "0" * 64),
    )
    for body, signature in forged:
        with pytest.raises(InvalidSignature):
            parse(body, signature)


def test_the_time_of_a_signature_is_checked_both_ways() -> None:
    """A delivery that is older or newer than the tolerance is rejected, even if it is signed; so a
    recorded one cannot be replayed later.
    """
    for seconds in (-300, 0, 300):
        time = NOW + timedelta(seconds=seconds)
        assert parse(BODY, sign(BODY, OLD, time=time)) == EVENT
    for seconds in (-301, 301, 86_400 * 365):
        with pytest.raises(InvalidSignature, match="too old, or lies in the future"):
            parse(BODY, sign(BODY, OLD, time=NOW + timedelta(seconds=seconds)))
    signature = sign(BODY, OLD)
    with pytest.raises(InvalidSignature):
        parse(BODY, signature, now=NOW + timedelta(minutes=6))


def test_only_one_time_counts() -> None:
    """A header with two times, or with a time that is written in another way, is rejected: what is
    compared with the clock is what the secret has signed.
    """
    time, now = int((NOW - timedelta(days=1)).timestamp()), f"t={int(NOW.timestamp())}"
    for old in (f"t={time}", f"t=000000{time}", f"t=+{time}", f"t= {time}", f"t={time} ", "t="):
        signed = old.removeprefix("t=").encode() + b"." + BODY
        for text in (signed, f"{time}.".encode() + BODY):
            signature = f"v1={hmac.new(OLD.encode(), text, hashlib.sha256).hexdigest()}"
            for header in itertools.permutations((old, now, signature)):
                with pytest.raises(InvalidSignature):
                    parse(BODY, ",".join(header))


def test_the_signature_is_that_of_stripes_library() -> None:
    """Stripe's own verifier accepts and rejects the same headers."""
    good = sign(BODY, OLD)
    other = sign(BODY, "whsec_another")
    headers = (
        good,
        other,
        good.replace("v1=", "v0="),
        f"{good},{other.partition(',')[2]}",
        f"{other},{good.partition(',')[2]}",
        ",".join(reversed(good.split(","))),
        f"{good},v0=abc",
        good.partition(",")[0],
        good.partition(",")[2],
        good[:-1],
        good.upper(),
        "",
    )
    for header in headers:
        assert is_accepted(header) == is_accepted_by_library(header), header
    assert {is_accepted(header) for header in headers} == {True, False}


def is_accepted(header: str) -> bool:
    try:
        parse(BODY, header)
    except InvalidSignature:
        return False
    return True


def is_accepted_by_library(header: str) -> bool:
    try:
        stripe.WebhookSignature.verify_header(BODY.decode(), header, OLD)
    except stripe.SignatureVerificationError:
        return False
    return True
