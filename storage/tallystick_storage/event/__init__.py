"""The table of EventService."""
