"""A process stores its traces at MonitoringService: those that failed, and a part of the others."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick import Client, InvalidArgumentError
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.payments import create_payment
from tests.support.platform import eventually, free_address
from tests.support.processes import environment_of, running_process

_CREATE_PAYMENT = "tallystick.payment.v1.PaymentService/CreatePayment"


def traces(client: Client, **filters: Any) -> list[Any]:
    request = pb.ListTracesRequest(page_size=200, **filters)
    return list(client.monitoring.ListTraces(request).traces)


def process_environment(databases: DatabaseUrls, address: str, ratio: str) -> dict[str, str]:
    return {
        **environment_of(databases),
        "TALLYSTICK_SERVER__LISTEN": address,
        "TALLYSTICK_TRACING__STORE_SPANS": "true",
        "TALLYSTICK_TRACING__TAIL_SAMPLING": "true",
        "TALLYSTICK_TRACING__SLOW_THRESHOLD": "60",
        "TALLYSTICK_TRACING__RATIO": ratio,
    }


def test_only_failed_traces_are_stored(scratch_database: DatabaseUrls) -> None:
    """With a ratio of 0. The call that stores spans has no trace of its own."""
    address = free_address()
    environment = process_environment(scratch_database, address, "0")
    with running_process(["serve", "all"], environment, address), Client(address) as client:
        create_payment(client, "5.00")
        with pytest.raises(InvalidArgumentError):
            create_payment(client, "-1")
        (trace,) = eventually(lambda: traces(client))
        assert (trace.name, trace.service_name) == (_CREATE_PAYMENT, "tallystick-all")
        response = client.monitoring.GetTrace(pb.GetTraceRequest(trace_id=trace.trace_id))
        (span,) = response.spans
        assert span.failed
        assert span.attributes["error.type"] == "AMOUNT_OUT_OF_RANGE"
        assert len(traces(client)) == 1


def test_a_trace_of_a_payment_has_all_its_calls(scratch_database: DatabaseUrls) -> None:
    """With a ratio of 1: calls, batches, transactions and the provider, each below its parent."""
    address = free_address()
    environment = process_environment(scratch_database, address, "1")
    with running_process(["serve", "all"], environment, address), Client(address) as client:
        assert create_payment(client, "5.00").is_payment_done
        assert eventually(lambda: traces(client, name=_CREATE_PAYMENT))
        (trace,) = traces(client, name=_CREATE_PAYMENT)
        request = pb.GetTraceRequest(trace_id=trace.trace_id)
        expected = {
            _CREATE_PAYMENT,
            "payment.create",
            "sandbox send",
            "tallystick.wallet.v1.WalletService/BatchCredit",
            "tallystick.ledger.v1.LedgerService/BatchPost",
            "transaction",
        }

        def names() -> set[str]:
            return {span.name for span in client.monitoring.GetTrace(request).spans}

        assert eventually(lambda: names() >= expected)
        spans = client.monitoring.GetTrace(request).spans
        ids = {span.span_id for span in spans}
        assert [span.name for span in spans if span.parent_span_id not in ids] == [_CREATE_PAYMENT]
