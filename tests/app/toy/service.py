"""The declaration of a toy service, which stores notes."""

from tallystick_server.service_spec import ServiceSpec

SPEC = ServiceSpec(
    name="toy",
    contract="tests.app.toy.wiring:ToyService",
    wiring="tests.app.toy.wiring",
    migrations="tests.app.toy:migrations",
    queries="tests.app.toy.wiring",
    checks="tests.app.toy.wiring",
    dependencies=("event",),
)
