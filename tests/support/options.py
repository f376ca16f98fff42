"""Command-line options and progress lines that several of the long measures share."""

from __future__ import annotations

import argparse
import re
import sys
from typing import NamedTuple


class RunPart(NamedTuple):
    """One of N parts, as K/N; the first is 1."""

    number: int
    total: int


def parse_part(text: str) -> RunPart:
    match = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be a part such as 2/6")
    return RunPart(int(match[1]), int(match[2]))


def positive_int(text: str) -> int:
    """A count of at least 1: a run of zero proves nothing."""
    if re.fullmatch(r"[1-9]\d{0,8}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
