"""A folder in memory for the PostgreSQL of a test run, which nobody needs afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_MIN_FREE_BYTES = 4 << 30


@contextmanager
def memory_folder(folder: Path) -> Iterator[Path]:
    """A folder in memory until the block ends; `folder` itself if the system has too little memory
    for files. Tests take two thirds of the time there. The name follows from `folder`, so that a
    run finds and stops what a killed one has left.
    """
    digest = sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    in_memory = _SHARED_MEMORY / f"tallystick-{os.getuid()}-{digest}"
    if not in_memory.exists() and not _has_enough_memory():
        yield folder
        return
    yield in_memory
    # Not after an error: another run may use the folder, and have been the cause.
    shutil.rmtree(in_memory, ignore_errors=True)


def _has_enough_memory() -> bool:
    return (
        os.access(_SHARED_MEMORY, os.W_OK)
        and shutil.disk_usage(_SHARED_MEMORY).free >= _MIN_FREE_BYTES
    )
