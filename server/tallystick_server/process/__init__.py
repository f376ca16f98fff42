"""Above the services: configuration, wiring, commands."""
