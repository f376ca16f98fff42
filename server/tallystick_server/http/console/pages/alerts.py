"""Alerts of all services, and symptoms."""

from __future__ import annotations

from tallystick_server.http.console.calls import gather_results
from tallystick_server.http.console.links import path_of, resource_path
from tallystick_server.http.console.pages.symptoms import read_symptoms
from tallystick_server.http.console.visit import Answer, Page, Visit


async def list_alerts(visit: Visit) -> Answer:
    """GET /console/alerts: the symptoms, and the newest alerts of each service; or more alerts of
    the service that the query names.
    """
    ended = visit.query.get("ended") == "true"
    chosen = visit.query.get("service", "")
    all_services = visit.calls.services_with("ListAlerts")
    services = [chosen] if chosen in all_services else all_services
    fields = visit.list_fields() if chosen else {"page_size": visit.list_fields()["page_size"]}
    results = await gather_results(
        *(visit.calls.attempt(f"{name}.ListAlerts", ended=ended, **fields) for name in services)
    )
    values = {
        "results": list(zip(services, results, strict=True)),
        "services": all_services,
        "symptoms": [] if chosen else await read_symptoms(visit.calls, visit.time),
        "alert_path": alert_path,
    }
    return Page("alerts.html", "Alerts", values)


def alert_path(service: str, resource_name: str) -> str:
    """The page on which an alert of a service is dealt with; "": there is none."""
    collection, _, key = resource_name.partition("/")
    if collection == "deadLetters":
        return path_of("dead-letters", service, key)
    if collection == "unappliedCharges":
        return path_of("unapplied-charges")
    return resource_path(resource_name)
