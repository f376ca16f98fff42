"""Hosted pages: pages of a provider on which buyers pay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import to_microseconds

MIN_LIFETIME_SECONDS = 600.0
"""A buyer needs time to pay."""
MAX_LIFETIME_SECONDS = 82_800.0
"""Providers close a page a day after its registration, which may happen earlier than the platform's
clock says.
"""
_LOCALE = re.compile(r"\A[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,2}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class RequestedPage:
    """A hosted page as a caller requested it."""

    success_url: str
    cancel_url: str
    expire_time: datetime | None
    """None: as configured."""
    locale: str

    def values(self) -> tuple[str | int, ...]:
        """The values that define equality of two requests."""
        return (
            "hosted_page",
            self.success_url,
            self.cancel_url,
            to_microseconds(self.expire_time),
            self.locale,
        )


def parse_locale(text: str, field: str) -> str:
    """Parses a language, such as "en" or "pt-BR", or "". Raises FIELD_INVALID."""
    if text and _LOCALE.match(text) is None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f'{field} must be a language such as "en" or "pt-BR", or empty.',
            field=field,
        )
    return text


def reject_expiry(page: RequestedPage, now: datetime) -> ApiError | None:
    """The error of a page that is requested now and would expire too soon or too late."""
    if page.expire_time is None:
        return None
    seconds = (page.expire_time - now).total_seconds()
    if MIN_LIFETIME_SECONDS <= seconds <= MAX_LIFETIME_SECONDS:
        return None
    field = "hosted_page.expire_time"
    return ApiError(
        ErrorReason.FIELD_INVALID,
        f"{field} must be {MIN_LIFETIME_SECONDS / 60:g} minutes to "
        f"{MAX_LIFETIME_SECONDS / 3600:g} hours from now; it is {seconds:,.1f} s.",
        field=field,
    )


def choose_expiry(page: RequestedPage, now: datetime, default_seconds: float) -> datetime:
    """When a page that is requested now expires."""
    return page.expire_time or now + timedelta(seconds=default_seconds)
