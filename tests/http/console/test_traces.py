"""Traces in the console: their list, the waterfall of one, and the links to them."""

from __future__ import annotations

import re

import pytest
from google.protobuf.duration_pb2 import Duration

from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick.monitoring.v1 import trace_pb2
from tests.support.callers import token_of
from tests.support.console import Person, Work
from tests.support.monitoring import new_span, trace_id_of
from tests.support.platform import ServedPlatform

_CREATE_PAYOUT = "tallystick.payout.v1.PayoutService/CreatePayout"


@pytest.fixture(scope="module")
def traces(platform: ServedPlatform) -> None:
    """Trace 1 is a failed call, 2 is slow, 3 is large. Spans are a second apart."""
    spans = [
        new_span(
            1,
            1,
            name=_CREATE_PAYOUT,
            kind=trace_pb2.SPAN_KIND_SERVER,
            duration=Duration(seconds=2),
        ),
        new_span(
            1,
            2,
            parent=1,
            name="transaction",
            failed=True,
            attributes={"error.type": "SERIALIZATION_FAILED", "db.namespace": "payout"},
        ),
        new_span(2, 1, name="payment.book", duration=Duration(seconds=700)),
        new_span(3, 1, name="payout.schedule", duration=Duration(seconds=300)),
        *(new_span(3, number, parent=1) for number in range(2, 301)),
    ]
    with platform.client(token_of("alice")) as client:
        client.monitoring.BatchRecordSpans(pb.BatchRecordSpansRequest(spans=spans))


def listed(page: str) -> list[int]:
    """The numbers of the traces that a page links to."""
    return [int(text, 16) for text in re.findall(r'href="/console/traces/([0-9a-f]{32})"', page)]


@pytest.mark.usefixtures("traces")
def test_traces_are_listed_by_what_they_are(alice: Person) -> None:
    """All, failed ones, slow ones, or those of a method, by its short name."""
    page = alice.get("/console/traces").text
    assert {1, 2, 3} <= set(listed(page))
    assert "payout.CreatePayout</a>" in page
    assert {1, 2, 3} & set(listed(alice.get("/console/traces?failed=true").text)) == {1}
    assert listed(alice.get("/console/traces?min_duration=600s").text) == [2]
    assert listed(alice.get("/console/traces?name=payout.CreatePayout").text) == [1]
    assert listed(alice.get("/console/traces?name=payout.schedule").text) == [3]
    assert "No traces." in alice.get("/console/traces?name=nothing").text
    assert alice.get("/console/traces?min_duration=long").status_code == 400


@pytest.mark.usefixtures("traces")
def test_a_trace_is_a_waterfall(alice: Person) -> None:
    """Its spans with their level, duration, status and attributes, and the sums of services."""
    page = alice.get(f"/console/traces/{trace_id_of(1)}").text
    assert "Trace of payout.CreatePayout" in page
    assert re.search(r"Level 1: </span>payout\.CreatePayout +<span", page)
    assert re.search(r'Level 2: </span>transaction <span class="state bad">failed</span>', page)
    for name, value in (("error.type", "SERIALIZATION_FAILED"), ("Begins after", "1.0 s")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    row = re.search(r"</svg> payout</th>(.*?)</tr>", page)
    assert row is not None
    assert re.findall(r">([^<]+)</td>", row[1]) == ["2", "1", "2.0 s"]


@pytest.mark.usefixtures("traces")
def test_a_large_trace_shows_a_part_until_all_is_asked_for(alice: Person) -> None:
    """The page says how many spans are left out."""
    path = f"/console/traces/{trace_id_of(3)}"
    page = alice.get(path).text
    assert page.count('<li class="indent-') == 200
    assert "100 short spans are left out." in page
    assert f'href="{path}?all=1"' in page
    assert alice.get(f"{path}?all=1").text.count('<li class="indent-') == 300


def test_a_trace_that_is_not_stored_has_a_page_with_the_reason(alice: Person) -> None:
    """It may never have been recorded, or be deleted; an id of another form is invalid."""
    response = alice.get(f"/console/traces/{'a' * 32}")
    assert response.status_code == 404
    assert "This trace is not stored" in response.text
    assert "Either it was not recorded, or it is deleted." in response.text
    assert alice.get("/console/traces/short").status_code == 400


@pytest.mark.usefixtures("traces")
def test_an_id_leads_to_its_trace(alice: Person) -> None:
    """In the search and in the list of traces, in either case of its letters."""
    path = f"/console/traces/{trace_id_of(1)}"
    assert alice.get(f"/console/search?q={trace_id_of(1)}").headers["Location"] == path
    found = alice.get(f"/console/traces?trace_id={trace_id_of(1).upper()}+")
    assert found.headers["Location"] == path


def test_the_story_of_a_payment_leads_to_its_traces(alice: Person, work: Work) -> None:
    """So does that of a payout."""
    for path in (f"payments/{work.declined}", f"payouts/{work.awaiting_payouts[0]}"):
        page = alice.get(f"/console/{path}?events=1").text
        assert re.search(r'href="/console/traces/[0-9a-f]{32}">Trace</a>', page), path
