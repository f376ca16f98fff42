"""A place in memory for the PostgreSQL of tests, which nobody needs after a crash."""

from __future__ import annotations

import os
import shutil
from hashlib import sha256
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_MIN_FREE_BYTES = 4 << 30


def memory_folder(folder: Path) -> Path:
    """A folder in memory, always the same for a given folder, or `folder` itself if the system has
    too little memory for files. Tests take two thirds of the time there.
    """
    if not os.access(_SHARED_MEMORY, os.W_OK):
        return folder
    if shutil.disk_usage(_SHARED_MEMORY).free < _MIN_FREE_BYTES:
        return folder
    digest = sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return _SHARED_MEMORY / f"tallystick-{os.getuid()}-{digest}"
