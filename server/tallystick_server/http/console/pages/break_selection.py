"""Breaks, several at once: those that a person matches with each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tallystick_server.http.console.calls import CallFailed
from tallystick_server.http.console.links import path_of
from tallystick_server.http.console.pages.breaks import MATCH, show_list
from tallystick_server.http.console.visit import Answer, FailedAct, Form, FormHandler, Page, Visit


async def match_selected(visit: Visit, form: Form) -> Answer:
    """POST /console/breaks/selected/match: matches the selected breaks, all or none."""
    fields = {item.name: form.fields.get(item.name, "").strip() for item in MATCH.inputs}
    try:
        response = await visit.calls.call(MATCH.call, break_ids=list(form.selected), **fields)
    except CallFailed as error:
        if error.rejects_token:
            raise
        failed = FailedAct(visit.path, error, fields)
        visit = replace(visit, path=path_of("breaks"), failed_act=failed)
        page = await show_list(visit, form.selected)
        return replace(page, status=error.http_status, visit=visit)
    values = {"response": response, "back": visit.other(path_of("breaks"))}
    return Page("breaks_matched.html", "Matched breaks", values)


FORM_PAGES: Mapping[str, FormHandler] = {"breaks/selected/match": match_selected}
