"""What the status and the headers of a provider's HTTP answer say."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime

from tallystick_core.provider.outcome import RetryReason

MAX_RETRY_AFTER_SECONDS = 86_400.0
"""The longest wait that a provider may ask for."""


def retry_reason_of(status: int) -> RetryReason:
    """Why a request is tried again if only the status of its answer can be read."""
    match status:
        case 401 | 403:
            return RetryReason.UNAUTHORIZED
        case 429:
            return RetryReason.THROTTLED
        case _ if status >= 500:
            return RetryReason.SERVER_ERROR
        case _:
            return RetryReason.NO_ANSWER


def parse_retry_after(header: str, date: str) -> float:
    """Parses Retry-After in seconds, at most a day; 0 if it is missing or invalid. It is a number
    of seconds, or a time, which counts from the provider's own `date`.
    """
    if re.fullmatch(r"[0-9]{1,30}(\.[0-9]{1,9})?", header, re.ASCII):
        return min(float(header), MAX_RETRY_AFTER_SECONDS)
    try:
        delay = parsedate_to_datetime(header) - parsedate_to_datetime(date)
    except (ValueError, TypeError):  # no date, or only one of them has a time zone
        return 0.0
    return min(max(delay.total_seconds(), 0.0), MAX_RETRY_AFTER_SECONDS)
