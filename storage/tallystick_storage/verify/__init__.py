"""The queries of `tallystick verify`: they read whole tables as sorted streams. Each schema has its
own file; `shared` holds what several schemas use.
"""

from tallystick_storage.verify.reader import Reader, statement
from tallystick_storage.verify.shared import broken_seals

__all__ = [
    "Reader",
    "broken_seals",
    "statement",
]
