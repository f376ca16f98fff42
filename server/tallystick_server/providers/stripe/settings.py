"""The settings of Stripe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import Field, PlainValidator

from tallystick_server.providers.provider_type import ProviderSettings
from tallystick_server.setting_types import (
    Kind,
    Seconds,
    Url,
    WholeSeconds,
    invalid,
    matching,
)

_YEAR_SECONDS = 31_536_000
MAX_SECRETS = 8
"""The most secrets of one webhook endpoint: one, and those that replace it."""


def _parse_list(parse_item: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    """A parser of a list of secrets. No error shows an item."""

    def parse(value: Any) -> tuple[str, ...]:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or len(items) > MAX_SECRETS:
            raise invalid(f"must be a list of at most {MAX_SECRETS} texts")
        return tuple(parse_item(item) for item in items if item != "")

    return parse


_API_KEY = (
    "a secret or restricted key of Stripe: sk_test_, sk_live_, rk_test_ or rk_live_, then 8 to 240 "
    "letters, digits or _"
)
_SUFFIX = "at most 22 printable ASCII characters with a letter, none of < > \\ ' \" *"
_SECRET = "signing secrets of Stripe, which begin with whsec_"

ApiKey: TypeAlias = Annotated[
    str,
    PlainValidator(matching(r"(sk|rk)_(test|live)_[A-Za-z0-9_]{8,240}", _API_KEY)),
    Kind("text", expected=_API_KEY),
]
WebhookSecrets: TypeAlias = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_list(matching(r"whsec_[A-Za-z0-9+/=_-]{8,240}", _SECRET))),
    Kind("list of text", expected=_SECRET),
]
StatementSuffix: TypeAlias = Annotated[
    str,
    PlainValidator(matching(r"((?=[ -~]*[A-Za-z])[ !#-&(),+\-./0-;=?-\[\]-~]{1,22})?", _SUFFIX)),
    Kind("text", expected=_SUFFIX),
]
ReportType: TypeAlias = Annotated[
    str,
    PlainValidator(matching(r"[a-z][a-z0-9_.]{2,99}", "the name of a report type of Stripe")),
    Kind("text", expected="the name of a report type of Stripe"),
]


class StripeSettings(ProviderSettings):
    """An account of Stripe, and the accounts that are connected to it."""

    api_key: ApiKey = Field(repr=False)
    """Secret or restricted key of the platform's account."""
    url: Url = Field(default="https://api.stripe.com", repr=False)
    """URL of Stripe, or of a server that behaves like it."""
    files_url: Url = Field(default="", repr=False)
    """URL from which reports are downloaded; empty: that of Stripe's files, or `url` if it is
    another server.
    """
    webhook_secrets: WebhookSecrets = Field(default=(), repr=False)
    """Signing secrets of the webhook endpoint for the platform's account; several while they are
    replaced.
    """
    connect_webhook_secrets: WebhookSecrets = Field(default=(), repr=False)
    """Signing secrets of the webhook endpoint for connected accounts."""
    webhook_tolerance: WholeSeconds = Field(default=300, ge=1, le=3600)
    """How far the time of a webhook may be from now, in both directions."""
    statement_descriptor_suffix: StatementSuffix = ""
    """Text on the buyer's statement after the account's prefix; empty: only the prefix."""
    payout_report: ReportType = "payout_reconciliation.itemized.7"
    """Type of the report of all payouts of Stripe to the platform's bank."""
    single_payout_report: ReportType = "payout_reconciliation.by_id.itemized.1"
    """Type of the report of one such payout."""
    key_window: Seconds | None = Field(default=86_400.0, ge=1, le=86_400)
    """How long Stripe honors an idempotency key, which it may forget after a day."""
    not_found_after: Seconds | None = Field(default=7200.0, ge=7200, le=_YEAR_SECONDS)
    """As `providers.not_found_after`. Stripe's search lags up to an hour."""

    @property
    def files_base(self) -> str:
        """The URL of the server that holds files."""
        if self.files_url:
            return self.files_url
        is_stripe = self.url == "https://api.stripe.com"
        return "https://files.stripe.com" if is_stripe else self.url
