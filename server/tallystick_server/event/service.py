"""The declaration of EventService."""

from tallystick_server.service_spec import ServiceSpec

SPEC = ServiceSpec(
    name="event",
    contract="tallystick.event.v1.event_service_pb2:EventService",
    wiring="tallystick_server.event.wiring",
    migrations="tallystick_storage:migrations/event",
    queries="tallystick_storage.verify.event",
    checks="tallystick_server.verify.events",
    publishes_events=False,
)
