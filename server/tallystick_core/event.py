"""Ids of events: the aggregate, and its version."""

from __future__ import annotations


def event_id(aggregate_id: str, version: int) -> str:
    return f"{aggregate_id}/{version}"
