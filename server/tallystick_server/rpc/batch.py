"""Batch calls: each item is rejected separately."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from google.rpc import status_pb2

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.validation import require_item_count
from tallystick_server.observability import names
from tallystick_server.observability.tracing import trace_id
from tallystick_server.rpc.errors import from_status, to_status
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.service_client import ServiceCallRejected
from tallystick_storage.database import ConstraintViolation

log = logging.getLogger(__name__)

K = TypeVar("K")
M = TypeVar("M")
T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R")


def check_batch(items: Sequence[object], field: str) -> None:
    """Requires 1 to 1,000 items. Raises FIELD_REQUIRED, TOO_MANY_ITEMS."""
    require_item_count(items, field, MAX_ITEMS)


async def process_items(
    items: Sequence[M],
    field: str,
    parse: Callable[[M], T],
    process: Callable[[list[T]], Awaitable[Sequence[R | Exception]]],
) -> list[R | Exception]:
    """Returns one result for each item of `field`, in order: its error, or the result of `process`.

    Raises FIELD_REQUIRED, TOO_MANY_ITEMS.
    """
    check_batch(items, field)
    results: list[R | Exception | None] = []
    parsed = []
    for index, item in enumerate(items):
        try:
            parsed.append(parse(item))
            results.append(None)
        except ApiError as error:
            results.append(error.with_field_prefix(f"{field}[{index}]"))
    processed_results = iter(await process(parsed) if parsed else ())
    return [next(processed_results) if result is None else result for result in results]


def apply_each(
    function: Callable[[T, S], R], items: Iterable[T | ApiError], others: Iterable[S | ApiError]
) -> list[R | ApiError]:
    """Applies a function to each item and its value of `others`. The result is the error instead if
    one of the two is an error, or if the function raises one.
    """

    def apply(item: T | ApiError, other: S | ApiError) -> R | ApiError:
        if isinstance(item, ApiError):
            return item
        if isinstance(other, ApiError):
            return other
        try:
            return function(item, other)
        except ApiError as error:
            return error

    return list(map(apply, items, others))


def to_item_status(error: Exception) -> status_pb2.Status:
    """The status of a rejected item. An error that is not the item's own is raised."""
    if isinstance(error, ConstraintViolation):
        log.error("the database rejected an item: %s", error, extra=names.ITEM_REJECTED.extra)
        return to_status(
            ApiError(
                ErrorReason.INTERNAL,
                "The database rejected the item.",
                metadata={"trace_id": trace_id()},
            )
        )
    if not isinstance(error, ApiError):
        raise error
    return to_status(error)


def errors_by_key(keys: Iterable[K], results: Iterable[Any]) -> dict[K, ApiError]:
    """The errors of another service by item key. Keys and results have the same order."""
    pairs = zip(keys, results, strict=True)
    return {
        key: from_status(result.error)
        for key, result in pairs
        if result.WhichOneof("result") == "error"
    }


class ItemRejected(Exception):
    """Another service rejected one item of a batch permanently."""


def item_errors(results: Iterable[Any]) -> list[ItemRejected | None]:
    """The rejection of each item, or None if it succeeded."""
    return [
        ItemRejected(from_status(result.error).message)
        if result.WhichOneof("result") == "error"
        else None
        for result in results
    ]


def split_results(keys: Sequence[K], results: Sequence[object]) -> tuple[list[K], dict[K, str]]:
    """The keys of the accepted items, and the reason of each rejected one by its key. An item that
    was not processed is in neither.
    """
    pairs = list(zip(keys, results, strict=True))
    accepted_keys = [key for key, result in pairs if result is None]
    rejections = {
        key: str(result)
        for key, result in pairs
        if isinstance(result, ItemRejected | ServiceCallRejected | ConstraintViolation)
    }
    return accepted_keys, rejections


def raise_if_unavailable(results: Iterable[object]) -> None:
    """Raises the first error of an item that was not processed, if there is one."""
    for result in results:
        if isinstance(result, ApiError):
            raise result
