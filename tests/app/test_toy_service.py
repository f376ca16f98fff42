"""A service is added by its folder, here tests/app/toy, and one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tallystick import Client
from tallystick_server.app import services
from tests.app.toy.service import SPEC
from tests.support.health import is_serving
from tests.support.platform import eventually, free_address, fresh_database
from tests.support.processes import environment_of, running_process

_PROGRAM = """
from tallystick_server.app import services
from tests.app.toy import service as toy
services.SERVICES = (*services.SERVICES, toy.SPEC)  # the line
from tallystick_server.cli.main import main
main()"""
_CLI = [sys.executable, "-c", _PROGRAM]


def test_a_service_is_added_by_one_line(
    admin_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service in the list is migrated, served, monitored, reflected, verified and configured."""
    monkeypatch.setattr(services, "SERVICES", (*services.SERVICES, SPEC))  # drops its roles
    with fresh_database(admin_url, tmp_path, migrated=False) as databases:
        name, address = "toy.ToyService", free_address()
        environment = environment_of(databases) | {
            "TALLYSTICK_SERVER__LISTEN": address,
            "TALLYSTICK_DATABASE__CONNECTIONS": "toy=1",
            "TALLYSTICK_WORKER__MONITOR_INTERVAL": "0.1",
        }

        def run(command: str) -> Any:
            program, variables = [*_CLI, command, "--json"], os.environ | environment
            completed = subprocess.run(program, env=variables, check=False, stdout=-1, timeout=60)
            return json.loads(completed.stdout)

        assert "toy" in run("migrate")["schemas"]
        with (
            running_process(["serve", "all"], environment, address, command=_CLI),
            grpc.insecure_channel(address) as channel,
            Client(address) as client,
        ):
            add_note: Any = channel.unary_unary(f"/{name}/AddNote")
            add_note(StringValue(value="late").SerializeToString(), timeout=10)
            assert is_serving(address, name)
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
            (response,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
            assert b"AddNote" in response.file_descriptor_response.file_descriptor_proto[0]
            alert = "alerts/toy-REVIEW_OVERDUE-notes-late-1"
            assert eventually(lambda: alert in [event.aggregate_id for event in client.events()])
        report = run("verify")
        assert report["passed"]
        assert "notes are short" in [check["name"] for check in report["checks"]]
        with psycopg.connect(databases.admin) as connection:
            connection.execute("update toy.note set note = 'much too long'")
        assert [finding for check in run("verify")["checks"] for finding in check["failures"]] == [
            "note: much too long",
            "toy.note much too long: does not match its seal",
        ]
