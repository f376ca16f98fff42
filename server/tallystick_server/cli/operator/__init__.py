"""The commands for operators of a running platform."""
