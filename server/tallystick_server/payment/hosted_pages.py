"""The hosted pages of new payments: what is checked before, and stored with the payment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.payment.checkout import CheckoutRequest
from tallystick_core.payment.hosted_page import choose_expiry
from tallystick_core.payment.return_url import reject_origin
from tallystick_core.payment.routing import RoutingTable
from tallystick_core.provider.payment_provider import ChargePage, PaymentProvider
from tallystick_server.payment.charge import build_page
from tallystick_server.payment.status_links import RETURNED_QUERY, StatusLinks
from tallystick_storage.payment import hosted_pages as store
from tallystick_storage.payment import status_links as link_store
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class HostedPageSettings:
    """`return_origins`: the origins to which pages may send buyers back, by caller."""

    lifetime_seconds: float
    return_origins: Mapping[str, Collection[str]]


@dataclass(frozen=True, slots=True)
class NewPage:
    """A page to store with its payment, and the link to the status page where it ends."""

    row: store.NewHostedPage
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
    """The hosted pages of new payments."""

    def __init__(
        self,
        settings: HostedPageSettings,
        links: StatusLinks,
        routing: RoutingTable,
        providers: Mapping[str, PaymentProvider],
    ) -> None:
        self._settings = settings
        self._links = links
        self._routing = routing
        self._providers = providers

    def reject(self, request: CheckoutRequest) -> ApiError | None:
        """The error of a payment whose page cannot be had; None: there is none, or no page."""
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
        for decision in self._routing.route_charges(request, request.orders).values():
            provider = self._providers.get(decision.provider)
            if provider is not None and not provider.hosts_pages:
                return _unavailable(
                    f"the provider of this payment, {decision.provider}, hosts no pages."
                )
        return None

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
        link = self._links.new_link(request.checkout_id)
        row = store.NewHostedPage(
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
