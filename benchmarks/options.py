"""Values of command line options. argparse prints the option before each error."""

from __future__ import annotations

import argparse

from benchmarks.reconcile.statement import MIN_LINES
from benchmarks.seed.run import MIN_PAYMENTS


def parse_count(text: str) -> int:
    return _parse_whole_number(text, 1)


def parse_payments(text: str) -> int:
    return _parse_whole_number(text, MIN_PAYMENTS)


def parse_lines(text: str) -> int:
    return _parse_whole_number(text, MIN_LINES)


def _parse_whole_number(text: str, minimum: int) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least {minimum}")
    return int(text)


def parse_seconds(text: str) -> float:
    return _parse_decimal(text, 0.5, 86_400)


def parse_fraction(text: str) -> float:
    return _parse_decimal(text, 0, 1)


def _parse_decimal(text: str, minimum: float, maximum: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not minimum <= value <= maximum:
        raise argparse.ArgumentTypeError(f"must be a number from {minimum:g} to {maximum:g}")
    return value
