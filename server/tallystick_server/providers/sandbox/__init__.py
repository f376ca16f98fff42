"""The adapter of the sandbox provider."""
