"""The contract, access rule, alert, handler, verify queries and verify check of the toy service."""

from google.protobuf import descriptor_pool, wrappers_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from tallystick_core.access import Role
from tallystick_core.operations.alert import AlertKind
from tallystick_server.app.wiring import Service, ServiceImplementation
from tallystick_server.rpc.call import Call
from tallystick_server.verify.report import Check, QueryRunner
from tallystick_storage.alerts import AlertQuery
from tallystick_storage.database import Database
from tallystick_storage.sql import text
from tallystick_storage.verify.shared import ALERTS, UNPUBLISHED_VERSIONS, seal_queries
from tests.app.toy.service import SPEC

_TEXT, _WRAPPERS = ".google.protobuf.StringValue", wrappers_pb2.DESCRIPTOR.name
_FILE = FileDescriptorProto(name="toy.proto", package="toy", dependency=[_WRAPPERS])
_FILE.service.add(name="ToyService").method.add(name="AddNote", input_type=_TEXT, output_type=_TEXT)
DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(_FILE.SerializeToString())
_INSERT = text("insert into note values (:note)")
_LATE = "select 'notes/' || note as resource_name, '' as detail from note where note = 'late'"
INCONSISTENCY_QUERIES: dict[str, str] = {}
QUERIES = {
    **seal_queries("toy"),
    "toy.outbox": UNPUBLISHED_VERSIONS,
    "toy.last_versions": f"select * from ({ALERTS.format(schema='toy')}) v order by 1",
    "toy.long": "select 'note' as name, note as what from note where length(note) > 9",
}


class _Handlers:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def AddNote(self, request: wrappers_pb2.StringValue, _call: Call) -> object:
        await self._database.transact(lambda c: c.execute(_INSERT, {"note": request.value}))
        return request


def _check_notes(read: QueryRunner) -> Check:
    check = Check("notes are short", "")
    check.fail_each(read("toy.long"))
    return check


CHECKS = (_check_notes,)
IMPLEMENTATION = ServiceImplementation(
    {"AddNote": frozenset({Role.TEAM})},
    lambda _wiring, database: Service(SPEC, _Handlers(database), [], [database]),
    lambda _settings: [AlertQuery(AlertKind.REVIEW_OVERDUE, "notes", _LATE, {})],
)
