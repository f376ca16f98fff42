"""What happens to an operation on a provider: its next action, and its dead letter."""
