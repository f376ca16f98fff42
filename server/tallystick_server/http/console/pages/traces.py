"""Traces: what took how long in a request."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from google.rpc import code_pb2

from tallystick_server.http.console.calls import CallFailed
from tallystick_server.http.console.links import path_of
from tallystick_server.http.console.rendering import span_name
from tallystick_server.http.console.visit import Answer, Page, Redirect, Visit
from tallystick_server.http.console.waterfall import MAX_ROWS, WIDTH, Span, waterfall

_DURATIONS = [("", "any"), ("0.1s", "100 ms"), ("1s", "1 s"), ("5s", "5 s"), ("30s", "30 s")]
_NO_LIMIT = 2_000


async def list_traces(visit: Visit) -> Answer:
    """GET /console/traces: newest first, those that failed, slow ones or those of a method; or the
    one of an id.
    """
    query = visit.query
    trace_id = query.get("trace_id", "").strip()
    if trace_id:
        return Redirect(path_of("traces", trace_id.lower()))
    name = query.get("name", "").strip()
    response = await visit.calls.call(
        "monitoring.ListTraces",
        failed=query.get("failed") == "true",
        min_duration=query.get("min_duration", ""),
        name=visit.calls.full_names().get(name, name),
        **visit.list_fields(),
    )
    values = {
        "traces": [
            {**trace, "duration": _duration(trace["duration"])} for trace in response["traces"]
        ],
        "next_page_token": response["next_page_token"],
        "filters": [
            ("failed", "Show", [("", "all"), ("true", "failed")]),
            ("min_duration", "Duration of at least", _DURATIONS),
            ("name", "First span", None),
            ("trace_id", "Trace id", None),
        ],
    }
    return Page("traces.html", "Traces", values)


async def show_trace(visit: Visit) -> Answer:
    """GET /console/traces/{trace_id}: its spans in time."""
    trace_id = visit.variables["trace_id"]
    try:
        response = await visit.calls.call("monitoring.GetTrace", trace_id=trace_id)
    except CallFailed as error:
        if error.code != code_pb2.NOT_FOUND:
            raise
        return Page("trace_missing.html", "This trace is not stored", {"trace_id": trace_id}, 404)
    trace = response["trace"]
    shows_all = bool(visit.query.get("all"))
    values = {
        "trace": trace,
        "waterfall": waterfall(
            [_span_of(span) for span in response["spans"]], _NO_LIMIT if shows_all else MAX_ROWS
        ),
        "shows_all": shows_all,
        "width": WIDTH,
    }
    return Page("trace.html", f"Trace of {span_name(trace['name'])}", values)


def _duration(text: str | None) -> timedelta:
    """A duration such as 1.5s."""
    return timedelta(seconds=float((text or "0s").removesuffix("s")))


def _span_of(values: Mapping[str, Any]) -> Span:
    return Span(
        span_id=values["span_id"],
        parent_id=values["parent_span_id"],
        name=values["name"],
        kind=values["kind"],
        process=values["service_name"],
        start=values["start_time"],
        duration=_duration(values["duration"]),
        failed=values["failed"],
        attributes=values["attributes"],
    )
