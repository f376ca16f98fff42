"""The hosted pages of new payments: what is checked before, and stored with the payment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.payment.checkout import CheckoutRequest
from tallystick_core.payment.hosted_page import choose_expiry, reject_expiry
from tallystick_core.payment.return_url import reject_origin
from tallystick_core.provider.payment_provider import ChargePage
from tallystick_core.status_link import RETURNED_QUERY
from tallystick_server.payment.charge import build_page
from tallystick_server.payment.status_links import StatusLinks
from tallystick_storage.payment import hosted_pages as store
from tallystick_storage.payment import status_links as link_store
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class HostedPageSettings:
    """`return_origins`: the origins to which pages may send buyers back, by caller."""

    lifetime_seconds: float
    return_origins: Mapping[str, Collection[str]]


_MIN_LINK_SECONDS = 2 * 86_400.0
"""A buyer who pays at the last moment still finds the status page."""


@dataclass(frozen=True, slots=True)
class NewPage:
    """A page to store with its payment, and the link to the status page to which it leads."""

    row: store.HostedPageRow
    link: link_store.NewStatusLink

    def to_charge_page(self, create_time: datetime, expire_time: datetime | None) -> ChargePage:
        """The page as its provider is asked for it."""
        if expire_time is None:
            raise ValueError("a payment with a hosted page expires")
        return build_page(
            self.row.checkout_id,
            self.row.return_url,
            create_time,
            expire_time,
            self.row.locale,
        )


class HostedPages:
    """The hosted pages of new payments. `page_providers`: the providers that host pages."""

    def __init__(
        self,
        settings: HostedPageSettings,
        links: StatusLinks,
        page_providers: Collection[str],
    ) -> None:
        self._settings = settings
        self._links = links
        self._page_providers = page_providers

    def reject(self, request: CheckoutRequest) -> ApiError | None:
        """The error of a payment that cannot have a page; None: it can, or requests none."""
        page = request.page
        if page is None:
            return None
        origins = self._settings.return_origins.get(request.caller, frozenset())
        for name in ("success_url", "cancel_url"):
            error = reject_origin(getattr(page, name), f"hosted_page.{name}", origins)
            if error is not None:
                return error
        if not self._links.is_available:
            return _unavailable("the platform's setting http.public_url is empty.")
        return None

    def reject_provider(self, request: CheckoutRequest, provider: str) -> ApiError | None:
        """The error of a payment with a page whose charge goes to a provider that hosts none."""
        if request.page is None or provider in self._page_providers:
            return None
        return _unavailable(f"the provider of this payment, {provider}, hosts no pages.")

    def reject_expiry(self, request: CheckoutRequest, now: datetime) -> ApiError | None:
        """The error of a payment whose page would expire too soon or too late."""
        return None if request.page is None else reject_expiry(request.page, now)

    def expire_time_of(self, request: CheckoutRequest, now: datetime) -> datetime | None:
        """When a payment that is stored now expires; None: never."""
        if request.page is None:
            return request.expire_time
        return choose_expiry(request.page, now, self._settings.lifetime_seconds)

    def new_page(self, request: CheckoutRequest) -> NewPage | None:
        """The page of a new payment. None: the buyer pays by token."""
        page = request.page
        if page is None:
            return None
        link = self._links.new_link(request.checkout_id, _MIN_LINK_SECONDS)
        row = store.HostedPageRow(
            request.checkout_id,
            page.success_url,
            page.cancel_url,
            page.expire_time,
            page.locale,
            f"{link.status_url}?{RETURNED_QUERY}",
        )
        return NewPage(row, link)

    def insert(self, connection: Connection, pages: Sequence[NewPage]) -> None:
        """Stores the pages of payments that this transaction has stored."""
        store.insert(connection, [page.row for page in pages])
        link_store.insert(connection, [page.link for page in pages])


def _unavailable(reason: str) -> ApiError:
    return ApiError(
        ErrorReason.FIELD_INVALID,
        f"hosted_page cannot be used: {reason}",
        field="hosted_page",
    )
