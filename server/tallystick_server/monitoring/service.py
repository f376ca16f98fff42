"""The declaration of MonitoringService."""

from tallystick_server.service_spec import ServiceSpec

SPEC = ServiceSpec(
    name="monitoring",
    contract="tallystick.monitoring.v1.monitoring_service_pb2:MonitoringService",
    wiring="tallystick_server.monitoring.wiring",
    migrations="tallystick_storage:migrations/monitoring",
    queries="tallystick_storage.verify.monitoring",
    checks="tallystick_server.verify.monitoring",
    connections=1,
    publishes_events=False,
    is_essential=False,
)
