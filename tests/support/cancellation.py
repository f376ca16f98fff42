"""Makes long-running commands stop immediately on a signal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ctrl-C and SIGTERM unwind the block, so that nothing is left behind, and end the process with
    a message.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        sys.exit(130)
