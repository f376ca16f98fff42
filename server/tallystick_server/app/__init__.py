"""The process: configuration, wiring, serving."""
