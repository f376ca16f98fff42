"""Conditions on the attributes of series, and their groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tallystick_core.errors import ApiError, ErrorReason

PROCESS_NAME, PROCESS_ID = "service.name", "service.instance.id"
"""Attributes that each series has: the name and the id of its process."""
MAX_FILTERS, MAX_GROUP_ATTRIBUTES = 10, 5
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9_.]{0,63}", re.ASCII)
_FILTER = re.compile(rf"({_ATTRIBUTE.pattern})(!?=)(.{{0,255}})", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class SeriesFilter:
    """Selects series whose attribute has this value, or (`is_negated`) another one. "" is the value
    of an attribute that a series lacks.
    """

    attribute: str
    value: str
    is_negated: bool


def parse_filters(texts: Sequence[str], field: str) -> list[SeriesFilter]:
    """Parses conditions such as error.type!=CANCELLED. Raises TOO_MANY_ITEMS, FIELD_INVALID."""
    _check_count(texts, field, MAX_FILTERS)
    filters = []
    for index, text in enumerate(texts):
        match = _FILTER.fullmatch(text)
        if match is None:
            path = f"{field}[{index}]"
            raise ApiError(
                ErrorReason.FIELD_INVALID,
                f"{path} must be attribute=value or attribute!=value, such as "
                "error.type!=CANCELLED.",
                field=path,
            )
        filters.append(SeriesFilter(match[1], match[3], match[2] == "!="))
    return filters


def parse_group_attributes(texts: Sequence[str], field: str) -> tuple[str, ...]:
    """Parses the attributes of groups. Raises TOO_MANY_ITEMS, FIELD_INVALID."""
    _check_count(texts, field, MAX_GROUP_ATTRIBUTES)
    for index, text in enumerate(texts):
        if _ATTRIBUTE.fullmatch(text) is None:
            path = f"{field}[{index}]"
            raise ApiError(
                ErrorReason.FIELD_INVALID,
                f"{path} must be the name of an attribute, such as rpc.method.",
                field=path,
            )
    return tuple(dict.fromkeys(texts))


def group_key(attributes: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """The values by which a series is grouped; "": it lacks the attribute."""
    return tuple(attributes.get(name, "") for name in names)


def _check_count(texts: Sequence[str], field: str, max_count: int) -> None:
    if len(texts) > max_count:
        raise ApiError(
            ErrorReason.TOO_MANY_ITEMS, f"{field} must have at most {max_count} items.", field=field
        )
