"""The charts of the overview and of the page of metrics: the figures that were recorded."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tallystick.monitoring.v1 import monitoring_pb2
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.http.console.history import PERIODS
from tests.support.callers import token_of
from tests.support.console import SETTINGS, Person, Work, dead_letters_of, serve_console
from tests.support.platform import ServedPlatform, eventually

_CALL_LIMITS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


def record(
    platform: ServedPlatform,
    metric: str,
    kind: monitoring_pb2.MetricKind.ValueType,
    *series: pb.RecordedSeries,
    boundaries: Sequence[float] = (),
) -> None:
    """Records the first values of a process of its own."""
    request = pb.BatchRecordSamplesRequest(
        process_id=str(uuid.uuid4()),
        process_name="tallystick-elsewhere",
        sequence=1,
        metrics=[pb.RecordedMetric(metric=metric, kind=kind, boundaries=boundaries, series=series)],
    )
    with platform.client(token_of("alice")) as client:
        client.monitoring.BatchRecordSamples(request)


def record_charges(
    platform: ServedPlatform, provider: str, currency: str, accepted: int, declined: int
) -> None:
    """Charges by transfer that a provider accepted and declined."""
    names = {"provider": provider, "currency": currency, "payment_method_type": "BANK_TRANSFER"}
    record(
        platform,
        "tallystick.charges.completed",
        monitoring_pb2.METRIC_KIND_COUNTER,
        pb.RecordedSeries(attributes={**names, "outcome": "Succeeded"}, value=accepted),
        pb.RecordedSeries(attributes={**names, "outcome": "Declined"}, value=declined),
    )


def record_calls(
    platform: ServedPlatform,
    method: str,
    seconds: float,
    bucket: tuple[int, int],
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Calls of a method of PayoutService. `bucket`: its index, and how many calls are in it."""
    counts = [0] * (len(_CALL_LIMITS) + 1)
    counts[bucket[0]] = bucket[1]
    names = {"rpc.method": f"tallystick.payout.v1.PayoutService/{method}", **(attributes or {})}
    record(
        platform,
        "rpc.server.call.duration",
        monitoring_pb2.METRIC_KIND_HISTOGRAM,
        pb.RecordedSeries(attributes=names, value=seconds, bucket_counts=counts),
        boundaries=_CALL_LIMITS,
    )


def rows_of(page: str) -> list[list[str]]:
    """The cells of each row of each table, without markup."""
    return [
        [
            re.sub(r"<[^>]*>", "", cell).strip()
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    ]


def figure_of(page: str, title: str) -> str:
    """The figure with this caption."""
    match = re.search(rf"<figure><figcaption>{title}</figcaption>.*?</figure>", page, re.DOTALL)
    assert match is not None, title
    return match[0]


def legend_of(figure: str) -> dict[str, str]:
    """The last value of each drawn line."""
    return dict(re.findall(r"</svg> ([^<]+) <strong>([^<]+)</strong>", figure))


def test_acceptance_is_shown_by_provider_method_and_currency(
    platform: ServedPlatform, work: Work, alice: Person
) -> None:
    """The rates of the period, and charts of them; in each period."""
    record_charges(platform, "acme-west", "SEK", 9, 1)
    record_charges(platform, "acme-east", "SEK", 1, 4)
    for period in ("hour", "day", "week", "month"):
        page = alice.get(f"/console?period={period}").text
        rows = rows_of(page)
        assert ["acme-west", "9", "1", "90.0 %"] in rows
        assert ["acme-east", "1", "4", "20.0 %"] in rows
        assert ["bank transfer", "10", "5", "66.7 %"] in rows
        assert ["SEK", "10", "5", "66.7 %"] in rows
        legend = legend_of(figure_of(page, "Acceptance rate by provider"))
        assert (legend["acme-west"], legend["acme-east"]) == ("90.0 %", "20.0 %")


def test_a_chart_has_a_title_a_description_and_its_numbers(
    platform: ServedPlatform, work: Work, alice: Person
) -> None:
    """For those who do not see it. Each key is there once."""
    record_charges(platform, "acme-north", "NOK", 3, 1)
    page = alice.get("/console?period=hour").text
    figure = figure_of(page, "Acceptance rate by currency")
    assert '<title id="by-currency-title">Acceptance rate by currency</title>' in figure
    assert re.search(r'<desc id="by-currency-text">From .*NOK: last 75\.0 %', figure)
    assert 'aria-labelledby="by-currency-title" aria-describedby="by-currency-text"' in figure
    header, newest, *older = rows_of(figure)
    assert len([newest, *older]) == 60
    column = header.index("NOK")
    assert "75.0 %" in {row[column] for row in (newest, *older)}
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_latency_is_that_of_the_chosen_method(
    platform: ServedPlatform, work: Work, alice: Person
) -> None:
    """Estimated from the histogram; another method is not mixed in."""
    record_calls(platform, "CancelPayout", 90, (9, 100))  # between 0.75 and 1 second
    page = alice.get("/console/metrics?period=hour&method=payout.CancelPayout").text
    legend = legend_of(figure_of(page, "Latency of payout.CancelPayout"))
    assert legend == {"99 %": "998 ms", "median": "875 ms"}
    assert "100" in {cell for row in rows_of(page) for cell in row}
    other = alice.get("/console/metrics?method=no.Method").text
    assert "Latency of payment.CreatePayment" in other
    assert "998 ms" not in figure_of(other, "Latency of payment.CreatePayment")


def test_every_panel_of_the_platform_is_there(
    platform: ServedPlatform, work: Work, alice: Person
) -> None:
    """Each has a chart, on either page and in any period."""
    record(
        platform,
        "tallystick.operations.oldest_due.age",
        monitoring_pb2.METRIC_KIND_GAUGE,
        pb.RecordedSeries(attributes={"service": "payment"}, value=3),
    )
    record_calls(platform, "RejectPayout", 0.5, (5, 4), {"error.type": "INVALID_STATE"})

    def has_charts(path: str, chart_count: int, tables: set[str]) -> bool:
        page = alice.get(path).text
        assert "could not be read" not in page
        figures = re.findall(r"<figure><figcaption>([^<]+)(.*?)</figure>", page, re.DOTALL)
        with_chart = {title for title, figure in figures if "</desc>" in figure}
        assert {title for title, _ in figures} >= tables
        return len(with_chart) == chart_count and len(figures) == chart_count + len(tables)

    for period in PERIODS:
        query = f"period={period.name}&currency=EUR"
        acceptance = f"Acceptance rate of {period.text}"
        tables = {acceptance, "Money at providers", "Money in flight now"}
        assert eventually(partial(has_charts, f"/console?{query}", 12, tables)), period.name
        assert eventually(partial(has_charts, f"/console/metrics?{query}", 9, set())), period.name
    assert re.search(r"Charges.*sandbox", alice.get("/console").text, re.DOTALL)


def test_money_in_flight_and_clearing_are_those_of_the_chosen_currency(
    platform: ServedPlatform, work: Work, alice: Person
) -> None:
    """Clearing is that of the chosen account, by age; what a provider owes is above zero."""
    names = {"service": "reconciliation", "account": work.account, "currency": "EUR"}
    record(
        platform,
        "tallystick.clearing.expected",
        monitoring_pb2.METRIC_KIND_GAUGE,
        pb.RecordedSeries(attributes={**names, "min_age_days": "2"}, value=5_00),
        pb.RecordedSeries(attributes={**names, "min_age_days": "3"}, value=7_00),
    )
    path = f"/console?period=hour&currency=EUR&account={work.account}"
    title = f"Clearing by age of {work.account} in EUR"

    def lines() -> dict[str, str]:
        return legend_of(figure_of(alice.get(path).text, title))

    assert eventually(lambda: len(lines()) == 2)
    assert lines()["2 to 4 days"] == "12.00"
    assert lines()["10 days or more"] in {"10.00", "30.00"}  # now, or earlier in the same step
    assert "Money in flight in EUR" in alice.get(path).text

    def in_flight() -> list[list[str]]:
        rows = rows_of(figure_of(alice.get(path).text, "Money in flight now"))
        return [row for row in rows if row[0] == "EUR"]

    def of_dead_letters() -> list[list[str]]:
        with platform.client(token_of("alice")) as client:
            number = len(dead_letters_of(client))  # other tests close some
        return [["EUR", f"{5 * number}.00", "0.00"]]

    assert eventually(lambda: in_flight() == of_dead_letters()), in_flight()


def test_webhooks_are_silent_only_if_none_was_delivered(
    platform: ServedPlatform, work: Work, alice: Person
) -> None:
    """As in the rule of Prometheus: a provider that delivers, but not all, is no symptom."""

    def row() -> list[str]:
        rows = rows_of(alice.get("/console/alerts").text)
        (found,) = (row for row in rows if row[-1] == "TallystickWebhooksSilent")
        return found[1:5]

    for provider, stored, expected in (
        ("acme-loud", 5, ["normal", "0", "0", "acme-loud"]),
        ("acme-quiet", 0, ["too high", "3", "0", "acme-quiet"]),
    ):
        record(
            platform,
            "tallystick.webhooks.received",
            monitoring_pb2.METRIC_KIND_COUNTER,
            pb.RecordedSeries(attributes={"provider": provider, "result": "stored"}, value=stored),
            pb.RecordedSeries(attributes={"provider": provider, "result": "fetched"}, value=3),
        )
        assert row() == expected


def test_an_auditor_sees_the_figures(work: Work, sign_in: Callable[[str], Person]) -> None:
    """Of the platform, as an operator does; a team sees no page of metrics."""
    assert "Acceptance rate by provider" in sign_in("auditor").get("/console").text
    assert "PERMISSION_DENIED" in sign_in("shop").get("/console/metrics").text


def test_without_recorded_metrics_nothing_is_shown_as_zero(scratch_database: DatabaseUrls) -> None:
    """The tiles say that their numbers are not known, and the page says why."""
    settings = SETTINGS.replace(monitoring__record_interval=0.0)
    with serve_console(scratch_database, settings) as platform:
        person = Person(platform.url)
        person.sign_in(token_of("alice"))
        page = person.get("/console").text
        assert "No figures were recorded in the last 15 minutes" in page
        assert page.count("not known") > 10
        assert "nothing waits" not in page
        assert "Nothing was recorded in this time." in page
