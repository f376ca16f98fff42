"""The spans of a trace as bars in time, each below the span that caused it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

MAX_ROWS = 200
"""How many spans of a large trace are shown at first: those that failed, and the longest."""
WIDTH = 1000
_MIN_WIDTH = 3
_MAX_INDENT = 8
_COLORS = 6
_SERVER = "SERVER"


@dataclass(frozen=True, slots=True)
class Span:
    """`parent_id`: "" for none. `kind`: such as SERVER. `process`: the name of its process."""

    span_id: str
    parent_id: str
    name: str
    kind: str
    process: str
    start: datetime
    duration: timedelta
    failed: bool
    attributes: Mapping[str, str]

    @property
    def end(self) -> datetime:
        return self.start + self.duration


@dataclass(frozen=True, slots=True)
class Row:
    """A span and its bar. `depth`: how many spans are above it. `service`: whose call it is part
    of. `own_time`: in which none of its children ran. `offset`: from the start of the trace. `x`
    and `width`: of WIDTH. `color`: that of its service, from 1.
    """

    span: Span
    depth: int
    service: str
    own_time: timedelta
    offset: timedelta
    x: float
    width: float
    color: int

    @property
    def indent(self) -> int:
        """The depth, up to the deepest that is drawn."""
        return min(self.depth, _MAX_INDENT)


@dataclass(frozen=True, slots=True)
class ServiceSum:
    """What a service did in a trace. Own times of spans that ran at the same time are added."""

    name: str
    color: int
    span_count: int
    failed_count: int
    own_time: timedelta


@dataclass(frozen=True, slots=True)
class Waterfall:
    """`rows`: each span after its parent. `services`: those with the longest own time first."""

    duration: timedelta
    rows: Sequence[Row]
    omitted_count: int
    services: Sequence[ServiceSum]


def waterfall(spans: Sequence[Span], max_rows: int = MAX_ROWS) -> Waterfall:
    """The waterfall of the spans of a trace, in the order of their start. A span whose parent is
    not among them is at the top. Above `max_rows` the shortest spans are left out.
    """
    if not spans:
        return Waterfall(timedelta(), [], 0, [])
    start, end = spans[0].start, max(span.end for span in spans)
    by_id = {span.span_id: span for span in spans}
    children: dict[str, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent_id, []).append(span)
    services: dict[str, str] = {}
    colors: dict[str, int] = {}
    rows = []
    for span, depth in _in_order(spans, by_id, children):
        service = _service_of(span, services)
        services[span.span_id] = service
        color = colors.setdefault(service, len(colors) % _COLORS + 1)
        x, width = _bar(span, start, end - start)
        own_time = _own_time(span, children.get(span.span_id, []))
        rows.append(Row(span, depth, service, own_time, span.start - start, x, width, color))
    kept = _choose_ids(spans, by_id, max_rows)
    kept_rows = [row for row in rows if row.span.span_id in kept]
    return Waterfall(end - start, kept_rows, len(rows) - len(kept_rows), _sums(rows))


def _in_order(
    spans: Sequence[Span], by_id: Mapping[str, Span], children: Mapping[str, Sequence[Span]]
) -> Iterator[tuple[Span, int]]:
    """Each span once, with its depth: children after their parent, by their start. Spans that are
    each other's parents are below the earliest of them.
    """
    tops = [span for span in spans if span.parent_id not in by_id]
    seen: set[str] = set()
    for top in (*tops, *spans):
        waiting = [(top, 0)]
        while waiting:
            span, depth = waiting.pop()
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            yield span, depth
            waiting += [(child, depth + 1) for child in reversed(children.get(span.span_id, []))]


def _service_of(span: Span, services: Mapping[str, str]) -> str:
    """The service that receives the call, or that of the parent; otherwise the process."""
    package, _, method = span.name.partition("/")
    parts = package.split(".")
    if span.kind == _SERVER and method and len(parts) > 1:
        return parts[1]
    return services.get(span.parent_id, span.process)


def _bar(span: Span, start: datetime, duration: timedelta) -> tuple[float, float]:
    """Where the bar begins, and its width; it is always visible."""
    if not duration:
        return 0.0, float(WIDTH)
    width = max(WIDTH * (span.duration / duration), _MIN_WIDTH)
    x = min(WIDTH * ((span.start - start) / duration), WIDTH - width)
    return round(x, 1), round(width, 1)


def _own_time(span: Span, children: Sequence[Span]) -> timedelta:
    """The time of a span in which no child ran. The children are in the order of their start."""
    total, position = timedelta(), span.start
    for child in children:
        if child.start > position:
            total += min(child.start, span.end) - min(position, span.end)
        position = max(position, child.end)
    return total + max(span.end - position, timedelta())


def _choose_ids(spans: Sequence[Span], by_id: Mapping[str, Span], max_rows: int) -> set[str]:
    """The ids of at most `max_rows` spans, with all that are above them: those that failed, then
    the longest.
    """
    kept: set[str] = set()
    for span in sorted(spans, key=lambda span: (not span.failed, -span.duration)):
        chain: list[str] = []
        above: Span | None = span
        while above is not None and above.span_id not in kept and above.span_id not in chain:
            if len(kept) + len(chain) == max_rows:
                break
            chain.append(above.span_id)
            above = by_id.get(above.parent_id)
        else:
            kept.update(chain)
    return kept


def _sums(rows: Sequence[Row]) -> list[ServiceSum]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.service, []).append(row)
    sums = [
        ServiceSum(
            name,
            group[0].color,
            len(group),
            sum(row.span.failed for row in group),
            sum((row.own_time for row in group), timedelta()),
        )
        for name, group in groups.items()
    ]
    return sorted(sums, key=lambda item: -item.own_time)
