"""Batches of items in one call: each item is refused on its own."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from google.rpc import status_pb2

from tallystick_core.refusal import Reason, Refused
from tallystick_server.runtime.errors import from_status, to_status
from tallystick_server.runtime.peers import PeerRefused
from tallystick_server.runtime.telemetry import trace_id
from tallystick_server.runtime.wire import MOST_ITEMS
from tallystick_storage.database import DataRefused

log = logging.getLogger(__name__)

K = TypeVar("K")
M = TypeVar("M")
T = TypeVar("T")
R = TypeVar("R")


def check_batch(items: Sequence[object], field: str) -> None:
    """1 to 1,000 items. Raises FIELD_REQUIRED, TOO_MANY_ITEMS."""
    if not items:
        raise Refused(Reason.FIELD_REQUIRED, f"{field} must have at least one item.", field=field)
    if len(items) > MOST_ITEMS:
        raise Refused(Reason.TOO_MANY_ITEMS, f"{field} must have at most {MOST_ITEMS} items.", field=field)


async def each(
    items: Sequence[M], field: str, parse: Callable[[M], T], run: Callable[[list[T]], Awaitable[Sequence[R | Exception]]]
) -> list[R | Exception]:
    """One result for each item of `field`, in order: its refusal, or what `run` made of it. Raises FIELD_REQUIRED, TOO_MANY_ITEMS."""
    check_batch(items, field)
    results: list[R | Exception | None] = []
    parsed = []
    for place, item in enumerate(items):
        try:
            parsed.append(parse(item))
            results.append(None)
        except Refused as refused:
            results.append(refused.below(f"{field}[{place}]"))
    made = iter(await run(parsed) if parsed else ())
    return [next(made) if result is None else result for result in results]


def refusal(error: Exception) -> status_pb2.Status:
    """An item's refusal as its result tells it; what is none of the item's is raised."""
    if isinstance(error, DataRefused):
        log.error("the database refused an item: %s (trace %s)", error, trace_id())
        return to_status(Refused(Reason.INTERNAL, "The database refused the item.", metadata={"trace_id": trace_id()}))
    if not isinstance(error, Refused):
        raise error
    return to_status(error)


def refusals(keys: Iterable[K], results: Iterable[Any]) -> dict[K, Refused]:
    """What another service refused of a batch, by the keys of its items, which stand in the order of the results."""
    answered = zip(keys, results, strict=True)
    return {key: from_status(result.error) for key, result in answered if result.WhichOneof("result") == "error"}


class ItemRefused(Exception):
    """Another service refused one item of a batch, for good."""


def outcomes(results: Iterable[Any]) -> list[ItemRefused | None]:
    """What another service made of each item of a batch; None: it was done."""
    return [ItemRefused(from_status(result.error).message) if result.WhichOneof("result") == "error" else None for result in results]


def refused_items(keys: Iterable[K], results: Iterable[object]) -> dict[K, str]:
    """Why items were refused, each by itself, by their keys."""
    return {key: str(result) for key, result in zip(keys, results, strict=True) if isinstance(result, ItemRefused | PeerRefused | DataRefused)}


def raise_unavailable(results: Iterable[object]) -> None:
    """Raises why items were not answered, if some were not."""
    for result in results:
        if isinstance(result, Refused):
            raise result
