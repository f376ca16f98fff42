"""scripts/generate-docs [--check]: rewrites the generated blocks of docs/, or reports stale ones.

A block starts with the line `<!-- generated: NAME -->` and ends with `<!-- end generated -->`, in
any page under docs/. A diagram is replaced as a whole. In a table only the generated columns are
replaced: each row is found by its first cell, and its other cells are written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any

from tallystick_core.payment.state import TERMINAL_STATUSES, TRANSITIONS, OrderStatus
from tallystick_core.payout.destination import (
    DESTINATION_TRANSITIONS,
    TERMINAL_DESTINATION_STATES,
    DestinationState,
)
from tallystick_core.payout.state import TERMINAL_STATES, PayoutState
from tallystick_core.payout.state import TRANSITIONS as PAYOUT_TRANSITIONS
from tallystick_core.reconciliation.breaks import BREAK_TRANSITIONS, BreakState
from tallystick_server.app.configuration import describe_settings
from tallystick_server.http.errors import reasons_by_http_status
from tallystick_server.observability import names
from tallystick_server.operations.retry_policy import DEFAULT_POLICIES, RetryPolicy, RetryStrategy
from tallystick_server.rpc.errors import CODE_BY_REASON

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(
    r"(^<!-- generated: ([a-z-]+) -->\n)(.*?)(^<!-- end generated -->$)", re.DOTALL | re.MULTILINE
)
_START = re.compile(r"^<!-- generated: ", re.MULTILINE)
_SEPARATOR = re.compile(r"\|[\s:|-]+\|$")
_EMPTY_DEFAULTS = ("", '""', "{}", "[]", "frozenset()")
_TO_DO = "TODO"
"""Fills the handwritten cells of a new row; --check reports it."""

Rows = Mapping[str, Mapping[str, str]]
"""The generated cells of a table: by the first cell, and by a word of the column's header."""


def _state_diagram(
    transitions: Mapping[tuple[Any, Any], StrEnum],
    initial: StrEnum,
    terminal: Collection[StrEnum],
) -> str:
    """A Mermaid diagram with an edge for each pair of states, labeled with its triggers."""
    edges = [((before, after), trigger) for (before, trigger), after in transitions.items()]
    edges.sort(key=lambda edge: [list(type(initial)).index(state) for state in edge[0]])
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {initial}"]
    for (before, after), group in groupby(edges, key=lambda edge: edge[0]):
        lines.append(f"    {before} --> {after}: {', '.join(label for _, label in group)}")
    lines += [f"    {state} --> [*]" for state in type(initial) if state in terminal]
    return "\n".join([*lines, "```", ""])


def _update_table(content: str, rows: Rows, first_header: str) -> str:
    """Replaces the generated cells, removes stale rows and adds missing rows at the end."""
    lines = content.splitlines()
    generated_headers = list(next(iter(rows.values())))
    if not any(line.startswith("|") for line in lines):
        lines += [
            "| " + " | ".join([first_header, *generated_headers, "meaning"]) + " |",
            "|---" * (len(generated_headers) + 2) + "|",
        ]
    updated: list[str] = []
    missing = dict(rows)
    headers: list[str] = []
    last_row = 0
    for index, line in enumerate(lines):
        if not line.startswith("|"):
            updated.append(line)
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if index + 1 < len(lines) and _SEPARATOR.match(lines[index + 1]):
            headers = cells
        elif not _SEPARATOR.match(line):
            name = cells[0].strip("`")
            if name not in missing:
                continue
            # the row is rewritten
            line = _join_row(name, headers, cells, missing.pop(name))  # noqa: PLW2901
        updated.append(line)
        last_row = len(updated)
    added = [
        _join_row(name, headers, [_TO_DO] * len(headers), values)
        for name, values in missing.items()
    ]
    return "\n".join([*updated[:last_row], *added, *updated[last_row:], ""])


def _join_row(name: str, headers: list[str], cells: list[str], values: Mapping[str, str]) -> str:
    generated = [
        next((value for word, value in values.items() if word in header.lower()), None)
        for header in headers
    ]
    written = [
        cell if value is None else value
        for cell, value in zip(cells[1:], generated[1:], strict=True)
    ]
    return "| " + " | ".join([f"`{name}`", *written]) + " |"


def _error_reasons(content: str) -> str:
    rows = {str(reason): {"status": f"`{code.name}`"} for reason, code in CODE_BY_REASON.items()}
    return _update_table(content, rows, "reason")


def _http_statuses(_: str) -> str:
    lines = ["| HTTP status | reasons |", "|---|---|"]
    for status, reasons in reasons_by_http_status().items():
        lines.append(f"| {status} | {', '.join(f'`{reason}`' for reason in reasons)} |")
    return "\n".join(lines) + "\n"


def _settings(_: str) -> str:
    """A table for each section; the settings without one come first."""
    lines = []
    for section, group in groupby(
        sorted(describe_settings(), key=lambda setting: "." in setting.path),
        key=lambda setting: setting.path.rpartition(".")[0],
    ):
        lines += [f"### `[{section}]`" if section else "### Without a section", ""]
        lines += ["| setting | type | allowed | default | meaning |", "|---|---|---|---|---|"]
        for setting in group:
            unit = f", {setting.unit}" if setting.unit and setting.unit not in setting.type else ""
            default = "empty" if setting.default in _EMPTY_DEFAULTS else f"`{setting.default}`"
            default = default.replace("`none: it must be set`", "none; it must be set")
            cells = (
                f"`{setting.path.rpartition('.')[2]}`",
                f"{setting.type}{unit}",
                setting.allowed,
                default,
                setting.description,
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(["", *lines])


def _retry_policies(content: str) -> str:
    rows = {
        str(reason).lower(): {"policy": f"`{_format_policy(policy)}`"}
        for reason, policy in DEFAULT_POLICIES.items()
    }
    return _update_table(content, rows, "retry reason")


def _format_policy(policy: RetryPolicy) -> str:
    tries = policy.max_tries or 0
    match policy.strategy:
        case RetryStrategy.CANCEL:
            return "cancel"
        case RetryStrategy.IMMEDIATE:
            return f"immediate:{tries}"
        case RetryStrategy.FIXED:
            return f"fixed:{policy.initial_interval_seconds:g}:{tries}"
        case _:
            seconds = f"{policy.initial_interval_seconds:g}:{policy.max_interval_seconds:g}"
            return f"{policy.strategy}:{seconds}:{tries}"


def _table(headers: str, rows: Iterable[Iterable[str]]) -> str:
    """A table that is generated as a whole. `headers` are separated by commas."""
    lines = [headers.split(","), ["---"] * len(headers.split(",")), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(["", *(f"| {' | '.join(line)} |" for line in cells), "", ""])


def _metrics(_: str) -> str:
    rows = (
        (
            f"`{metric.name}`",
            f"`{metric.prometheus_name}`",
            str(metric.kind),
            f"`{metric.unit}`",
            ", ".join(f"`{name}`" for name in (*metric.attributes, *metric.fixed_attributes)),
            metric.description,
        )
        for metric in names.METRICS
    )
    return _table("metric,in Prometheus,kind,unit,attributes,meaning", rows)


def _spans(_: str) -> str:
    rows = ((f"`{span.pattern}`", span.description) for span in names.SPANS)
    return _table("span,meaning", rows)


def _batches(_: str) -> str:
    rows = ((f"`{batcher}`", f"{action}") for batcher, action in names.BATCHES.items())
    return _table("batcher,what a batch does", rows)


def _log_events(_: str) -> str:
    rows = ((f"`{event.name}`", event.level, event.description) for event in names.LOG_EVENTS)
    return _table("event,level,meaning", rows)


BLOCKS: dict[str, Callable[[str], str]] = {
    "payment-states": lambda _: _state_diagram(
        TRANSITIONS,
        OrderStatus.NOT_STARTED,
        TERMINAL_STATUSES,
    ),
    "payout-states": lambda _: _state_diagram(
        PAYOUT_TRANSITIONS,
        PayoutState.CREATED,
        TERMINAL_STATES,
    ),
    "destination-states": lambda _: _state_diagram(
        DESTINATION_TRANSITIONS,
        DestinationState.PENDING_VERIFICATION,
        TERMINAL_DESTINATION_STATES,
    ),
    "break-states": lambda _: _state_diagram(BREAK_TRANSITIONS, BreakState.OPEN, ()),
    "error-reasons": _error_reasons,
    "http-statuses": _http_statuses,
    "settings": _settings,
    "retry-policies": _retry_policies,
    "metrics": _metrics,
    "spans": _spans,
    "batches": _batches,
    "log-events": _log_events,
}
"""What each block must hold, given what it holds."""


def regenerate(text: str) -> tuple[str, list[str]]:
    """A page with fresh blocks, and their names. Raises KeyError for an unknown name."""
    names = [match[2] for match in _BLOCK.finditer(text)]
    return _BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]](match[3]) + match[4], text), names


def main(arguments: list[str]) -> int:
    problems, found = [], set()
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page, text = path.relative_to(ROOT), path.read_text()
        if len(_START.findall(text)) != len(_BLOCK.findall(text)):
            problems.append(
                f"{page}: a generated block has no end, or a name that is not of a-z and -"
            )
            continue
        try:
            fresh, names = regenerate(text)
        except KeyError as error:
            problems.append(
                f"{page}: there is no generated block {error}; there are {', '.join(BLOCKS)}"
            )
            continue
        found.update(names)
        if fresh != text and "--check" not in arguments:
            path.write_text(fresh)
        elif fresh != text:
            before, after = text.splitlines(), fresh.splitlines()
            changed = next((line for line in after if line not in before), "a line is removed")
            problems.append(
                f"{page}: stale, run scripts/generate-docs; the first difference: {changed.strip()}"
            )
        if any(f"| {_TO_DO} |" in match[3] for match in _BLOCK.finditer(fresh)):
            problems.append(
                f"{page}: a new row of a generated table has cells to write by hand: {_TO_DO}"
            )
    problems += [
        f"no page under docs/ has the generated block {name}"
        for name in BLOCKS
        if name not in found
    ]
    for problem in problems:
        print(f"generate-docs: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
