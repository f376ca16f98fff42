"""Dead letters, several at once: those that a person selects, or all that match a filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tallystick_server.http.console.acts import Act
from tallystick_server.http.console.calls import CallFailed, gather_results
from tallystick_server.http.console.links import path_of, with_query
from tallystick_server.http.console.pages.dead_letters import (
    SERVICES,
    dead_letter_acts,
    filter_fields,
    show_list,
)
from tallystick_server.http.console.visit import (
    Answer,
    FailedAct,
    Form,
    FormHandler,
    Page,
    PageHandler,
    Visit,
)

_MAX_CONCURRENT_ACTS = 5
"""To close a dead letter, its provider is asked. CloseDeadLetters asks about as many at a time."""


def _selected(service: str, act: Act) -> FormHandler:
    async def do(visit: Visit, form: Form) -> Answer:
        """POST /console/dead-letters/{service}/selected/{act}: acts on each selected dead letter,
        and shows what became of each.
        """
        if not form.selected:
            visit = replace(visit, path=path_of("dead-letters"))
            page = await show_list(visit, "Select at least one dead letter.")
            return replace(page, visit=visit)
        calls = visit.calls.with_limit(len(form.selected))
        fields = _entered(act, form)
        results = await gather_results(
            *(calls.attempt(act.call, dead_letter_id=id_, **fields) for id_ in form.selected),
            max_concurrent=_MAX_CONCURRENT_ACTS,
        )
        failed = [result.error for result in results if result.error]
        values = {
            "items": list(zip(form.selected, results, strict=True)),
            "done_count": len(results) - len(failed),
            "service": service,
            "back": visit.other(path_of("dead-letters")),
        }
        status = failed[0].http_status if len(failed) == len(results) else 200
        return Page("dead_letters_done.html", f"{act.label} {_count(len(results))}", values, status)

    return do


def _count(number: int) -> str:
    return f"{number} dead letter{'s' if number != 1 else ''}"


def _entered(act: Act, form: Form) -> dict[str, str]:
    return {item.name: form.fields.get(item.name, "").strip() for item in act.inputs}


def _matching_page(service: str) -> PageHandler:
    async def show(visit: Visit) -> Answer:
        """GET /console/matching-dead-letters/{service}: how many open dead letters match the fields
        `cause` and `provider`, and the forms to decide about them all.
        """
        return await _show_matching(visit, service, visit.query)

    return show


async def _show_matching(visit: Visit, service: str, chosen: Mapping[str, str]) -> Page:
    retry = await visit.calls.call(
        f"{service}.RetryDeadLetters", **_selector(chosen), reason="count", dry_run=True
    )
    values = {
        "response": retry,
        "service": service,
        "chosen": {name: chosen.get(name, "") for name in ("cause", "provider")},
        "acts": visit.allowed(dead_letter_acts(service)),
        "back": with_query(path_of("dead-letters"), service=service),
    }
    return Page("dead_letters_matching.html", "All dead letters that match", values)


def _selector(chosen: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a bulk call that choose the dead letters."""
    fields = filter_fields(chosen)
    return {"filter": fields} if fields else {"all": True}


def _matching(service: str, act: Act) -> FormHandler:
    async def do(visit: Visit, form: Form) -> Answer:
        """POST /console/matching-dead-letters/{service}/{act}: acts on the next of all that match,
        and shows which were skipped, and whether there are more.
        """
        entered = _entered(act, form)
        try:
            response = await visit.calls.call(
                f"{act.call}s",
                **_selector(form.fields),
                **entered,
                page_token=form.fields.get("page_token", ""),
            )
        except CallFailed as error:
            if error.rejects_token:
                raise
            visit = replace(visit, failed_act=FailedAct(visit.path, error, entered))
            page = await _show_matching(visit, service, form.fields)
            return replace(page, status=error.http_status, visit=visit)
        values = {
            "response": response,
            "service": service,
            "chosen": {name: form.fields.get(name, "") for name in ("cause", "provider")},
            "entered": entered,
            "act": act,
            "back": with_query(path_of("dead-letters"), service=service),
        }
        title = f"{act.label} {_count(response['matched'])}"
        return Page("dead_letters_matched.html", title, values)

    return do


MATCHING_PAGES: Mapping[str, PageHandler] = {
    f"matching-dead-letters/{service}": _matching_page(service) for service in SERVICES
}
FORM_PAGES: Mapping[str, FormHandler] = {
    path: handler
    for service in SERVICES
    for act in dead_letter_acts(service)
    for path, handler in (
        (f"dead-letters/{service}/selected/{act.name}", _selected(service, act)),
        (f"matching-dead-letters/{service}/{act.name}", _matching(service, act)),
    )
}
