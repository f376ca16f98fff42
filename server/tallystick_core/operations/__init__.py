"""The rules for provider operations: the next action, dead letters and alerts."""
