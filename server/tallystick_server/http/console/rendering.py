"""How values look on a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from tallystick_server.http.console.links import (
    account_path,
    field_path,
    path_of,
    resource_path,
    with_query,
)
from tallystick_server.http.web_pages import template_environment

_FOLDER = Path(__file__).parent / "templates"
_EXACT_SECONDS = 0.00995
_MINUTE, _HOUR_MINUTES, _DAY_HOURS = 60, 60, 24
_METHOD = re.compile(r"^tallystick\.(\w+)\.v\d+\.(?:\w+/)?(\w+)$", re.ASCII)
_GOOD = frozenset(
    {"PAID", "SUCCESS", "DONE", "RESOLVED", "RECONCILED", "MATCHED", "SUCCEEDED", "VERIFIED"}
)
_BAD = frozenset(
    {"FAILED", "REJECTED", "RETURNED", "DECLINED", "UNKNOWN", "BREAK", "UNUSABLE", "OVERDUE"}
)
_WAITING = frozenset(
    {
        "OPEN",
        "PENDING",
        "EXECUTING",
        "NOT_STARTED",
        "AWAITING_APPROVAL",
        "PARTIALLY_PAID",
        "LOADING",
        "SUBMITTING",
        "SUBMITTED",
        "IN_TRANSIT",
        "CREATED",
        "READY",
        "INVESTIGATION",
        "FINANCE",
    }
)


def console_environment() -> Environment:
    """The templates of the console with the functions that they use."""
    environment = template_environment(_FOLDER)
    environment.filters.update(
        time=format_time,
        duration=format_duration,
        label=format_label,
        tone=tone_of,
        words=format_words,
        span_name=span_name,
        set_fields=set_fields,
    )
    environment.globals.update(
        path_of=path_of,
        with_query=with_query,
        account_path=account_path,
        field_path=field_path,
        resource_path=resource_path,
    )
    return environment


def format_time(time: datetime | None) -> Markup:
    """A time in UTC, to the second; "–" for none."""
    if time is None:
        return Markup("–")
    time = time.astimezone(UTC).replace(microsecond=0)
    return Markup('<time datetime="{}">{}</time>').format(
        time.strftime("%Y-%m-%dT%H:%M:%SZ"), time.strftime("%Y-%m-%d %H:%M:%S")
    )


def format_duration(duration: timedelta | None) -> str:
    """A duration in its largest units: "2 d 3 h", "5 min", "40 ms", "0.3 ms"; "–" for none."""
    if duration is None:
        return "–"
    seconds = duration.total_seconds()
    if seconds < 1:
        return f"{1000 * seconds:.{1 if 0 < seconds < _EXACT_SECONDS else 0}f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    minutes = int(seconds // _MINUTE)
    if minutes < _HOUR_MINUTES:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, _HOUR_MINUTES)
    if hours < _DAY_HOURS:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, _DAY_HOURS)
    return f"{days} d {hours} h"


def format_label(name: str) -> str:
    """The name of a field as words: "create_time" as "Create time"."""
    return name.replace("_", " ").capitalize()


def format_words(name: str) -> str:
    """The name of an enum value as words: "AWAITING_APPROVAL" as "awaiting approval"."""
    return name.replace("_", " ").lower()


def span_name(name: str) -> str:
    """The name of a method of the platform without its package and version, such as
    payment.CreatePayment; other names stay.
    """
    return _METHOD.sub(r"\1.\2", name)


def tone_of(state: str) -> str:
    """How a state is colored: good, bad, waiting or quiet. The color adds no meaning."""
    for tone, states in (("good", _GOOD), ("bad", _BAD), ("waiting", _WAITING)):
        if state in states:
            return tone
    return "quiet"


def set_fields(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The fields of a message that have a value, without those that are messages themselves."""
    return [
        (name, value)
        for name, value in values.items()
        if value not in (None, "", [], 0) and not isinstance(value, dict | list)
    ]
