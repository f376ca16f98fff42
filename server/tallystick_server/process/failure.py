"""What ends a command: one clear sentence that says what to do."""


class Failure(Exception):
    """Shown to the person at the terminal as it is, without a traceback; the command exits 1."""
