"""Texts about a break that several commands show."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallystick.reconciliation.v1 import reconciliation_pb2


def references_of(found: reconciliation_pb2.Break) -> str:
    """The references of its lines and ledger entries, each once; "": it has neither."""
    return " ".join(dict.fromkeys(filter(None, _references(found))))


def _references(found: reconciliation_pb2.Break) -> Iterator[str]:
    for line in found.lines:
        yield line.line.reference
        yield line.line.charge_reference
        yield line.line.client_reference
    for item in found.ledger_items:
        yield item.external_reference
        yield item.source_id


def age_in_days(found: reconciliation_pb2.Break, time: datetime) -> int:
    """The whole days from when it was found until `time`, in UTC."""
    return (time - found.create_time.ToDatetime(time.tzinfo)).days
