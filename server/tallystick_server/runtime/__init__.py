"""Below the services: incoming and outgoing calls, stages, telemetry, the relay."""
