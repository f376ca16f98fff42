"""The rules for provider operations: the next action and the dead letter."""
