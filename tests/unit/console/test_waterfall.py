"""The waterfall of a trace: order, bars, own times and limits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from tallystick_server.http.console.waterfall import WIDTH, Row, Span, waterfall

START = datetime(2026, 11, 30, 12, tzinfo=UTC)


def span(
    span_id: str,
    parent_id: str = "",
    start: float = 0,
    seconds: float = 1,
    *,
    name: str = "work",
    kind: str = "INTERNAL",
    failed: bool = False,
) -> Span:
    return Span(
        span_id,
        parent_id,
        name,
        kind,
        "tallystick-all",
        START + timedelta(seconds=start),
        timedelta(seconds=seconds),
        failed,
        {},
    )


def outline(rows: Sequence[Row]) -> list[tuple[str, int]]:
    return [(row.span.span_id, row.depth) for row in rows]


def test_each_span_is_below_its_parent() -> None:
    """Children follow their parent in the order of their start, with all that is below them."""
    spans = [
        span("root", seconds=10),
        span("a", "root", 1),
        span("b", "root", 2, 5),
        span("a1", "a", 3),
        span("b1", "b", 4),
    ]
    assert outline(waterfall(spans).rows) == [
        ("root", 0),
        ("a", 1),
        ("a1", 2),
        ("b", 1),
        ("b1", 2),
    ]


def test_a_bar_is_where_its_span_was_in_the_trace() -> None:
    """In proportion to the duration of the trace; the shortest one is visible, also at the end."""
    spans = [span("root", seconds=10), span("a", "root", 2.5, 5), span("b", "root", 10, 0)]
    result = waterfall(spans)
    assert result.duration == timedelta(seconds=10)
    root, middle, last = result.rows
    assert (root.x, root.width) == (0, WIDTH)
    assert (middle.x, middle.width) == (WIDTH / 4, WIDTH / 2)
    assert middle.offset == timedelta(seconds=2.5)
    assert last.width > 0
    assert last.x + last.width == WIDTH


def test_the_parts_of_an_incomplete_trace_are_at_the_top() -> None:
    """A span whose parent is not stored has no level above it."""
    spans = [span("a", "not-stored"), span("a1", "a", 0.1), span("b", "elsewhere", 0.5)]
    assert outline(waterfall(spans).rows) == [("a", 0), ("a1", 1), ("b", 0)]


def test_spans_that_are_each_others_parents_are_shown_once() -> None:
    """Other programs may send anything; so may a span be its own parent."""
    spans = [span("a", "b"), span("b", "a", 0.1), span("c", "c", 0.2), span("d", "c", 0.3)]
    assert outline(waterfall(spans).rows) == [("a", 0), ("b", 1), ("c", 0), ("d", 1)]


def test_a_deep_trace_is_shown() -> None:
    """2,000 spans, each the child of the one before it; the indentation ends."""
    spans = [span(str(number), str(number - 1), number) for number in range(2_000)]
    result = waterfall(spans, 2_000)
    assert result.rows[-1].depth == 1_999
    assert result.rows[-1].indent == 8


def test_the_own_time_is_that_without_children() -> None:
    """Children that run at the same time count once, and what runs after the parent not at all."""
    spans = [
        span("root", seconds=10),
        span("a", "root", 1, 3),
        span("b", "root", 2, 4),
        span("c", "root", 9, 5),
    ]
    seconds = {row.span.span_id: row.own_time.total_seconds() for row in waterfall(spans).rows}
    assert seconds == {"root": 4, "a": 3, "b": 4, "c": 5}


def test_spans_belong_to_the_service_that_received_the_call() -> None:
    """All below a received call are its service's; outside of one, the process is named."""
    wallet = "tallystick.wallet.v1.WalletService/BatchCredit"
    payment = "tallystick.payment.v1.PaymentService/CreatePayment"
    spans = [
        span("periodic", seconds=20),
        span("call", "periodic", 1, 15, name=payment, kind="SERVER"),
        span("client", "call", 2, 10, name=wallet, kind="CLIENT"),
        span("server", "client", 3, 8, name=wallet, kind="SERVER", failed=True),
        span("transaction", "server", 4, 6),
    ]
    result = waterfall(spans)
    assert [row.service for row in result.rows] == [
        "tallystick-all",
        "payment",
        "payment",
        "wallet",
        "wallet",
    ]
    sums = [
        (item.name, item.span_count, item.failed_count, item.own_time.total_seconds())
        for item in result.services
    ]
    assert sums == [("wallet", 2, 1, 8), ("payment", 2, 0, 7), ("tallystick-all", 1, 0, 5)]


def test_a_large_trace_shows_failed_and_long_spans() -> None:
    """With all that is above them; the sums of services count every span."""
    spans = [
        span("root", seconds=1_000),
        *(span(f"s{number}", "root", number, 1 + number / 100) for number in range(300)),
        span("deep", "s0", 300.5, 0.001, failed=True),
    ]
    result = waterfall(spans, max_rows=10)
    ids = [row.span.span_id for row in result.rows]
    assert len(ids) == 10
    assert ids[:3] == ["root", "s0", "deep"]
    assert ids[3:] == [f"s{number}" for number in range(293, 300)]
    assert result.omitted_count == 292
    assert result.services[0].span_count == 302
    assert waterfall([]).rows == []
