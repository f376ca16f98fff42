"""What a process that serves runs on: the event loop, and the thresholds of garbage collection."""

from __future__ import annotations

import asyncio

# messages and rows have no reference cycles, and the search for them was costly
GC_THRESHOLDS = (100_000, 50, 1000)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop available."""
    try:
        import uvloop  # noqa: PLC0415 - there is none for Windows
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
