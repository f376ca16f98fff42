"""Lists and searches of objects, page by page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tallystick_sandbox.stripe import store
from tallystick_sandbox.stripe.context import Advance, Context
from tallystick_sandbox.stripe.errors import missing
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.store import ListFilter, StoredObject

BuildFilter = Callable[[Parameters], dict[str, Any]]
"""Reads the parameters of a list; returns what its objects must contain."""
_MAX_TIME = 2**62


def list_page(
    type_: str,
    url: str,
    build_filter: BuildFilter,
    build_options: BuildFilter | None = None,
    look_up: Advance | None = None,
) -> Callable[..., dict[str, Any]]:
    """The handler of a list: the newest objects of the account first. `build_options`: further
    fields of its ListFilter; `look_up`: what a lookup does to each object.
    """

    def handle(context: Context, parameters: Parameters) -> dict[str, Any]:
        limit, after, before = parameters.page()
        bounds = parameters.created_range()
        body_filter = build_filter(parameters)
        options = build_options(parameters) if build_options else {}
        parameters.reject_unknown()
        for name, id_ in (("starting_after", after), ("ending_before", before)):
            if id_:
                item = context.find(id_)
                if item is None or (item.type, item.account) != (type_, context.account):
                    raise missing(type_, id_, param=name, status=400)
        created = (
            max(bounds.get("gte", 0), bounds.get("gt", -1) + 1),
            min(bounds.get("lte", _MAX_TIME), bounds.get("lt", _MAX_TIME) - 1),
        )
        list_filter = ListFilter(
            context.account, type_, body_filter, limit + 1, created, after, before, **options
        )
        found = store.list_objects(context.connection, list_filter)
        page = found[-limit:] if before and not after else found[:limit]
        return {
            "object": "list",
            "url": url,
            "has_more": len(found) > limit,
            "data": [_present(context, item, look_up).body for item in page],
        }

    return handle


def _present(context: Context, item: StoredObject, look_up: Advance | None) -> StoredObject:
    """An object of a list as it is now: one that is due, or that a lookup changes, advances."""
    if look_up is None and (item.due_time is None or item.due_time > context.now):
        return item
    current = context.find(item.id) or item
    if look_up is not None:
        look_up(context, current)
    return current


def search_page(type_: str, url: str, build_filter: BuildFilter) -> Callable[..., dict[str, Any]]:
    """The handler of a search. It finds objects only after the lag of the rules."""

    def handle(context: Context, parameters: Parameters) -> dict[str, Any]:
        limit, _, _ = parameters.page()
        after = parameters.text("page")
        body_filter = build_filter(parameters)
        parameters.reject_unknown()
        list_filter = ListFilter(
            context.account,
            type_,
            body_filter,
            limit + 1,
            after=after,
            lag_seconds=context.rules.search_lag_seconds,
        )
        found = store.list_objects(context.connection, list_filter)
        page = found[:limit]
        has_more = len(found) > limit
        return {
            "object": "search_result",
            "url": url,
            "has_more": has_more,
            "next_page": page[-1].id if has_more else None,
            "data": [item.body for item in page],
        }

    return handle
