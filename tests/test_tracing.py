"""One trace for one payment: from the SDK through every service, stage, provider call and transaction."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tallystick import new_order

from .conftest import Platform, unique


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Records every span of this process, the server's thread included."""
    made = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(made))
    return made


def test_one_payment_is_one_trace(platform: Platform, exporter: InMemorySpanExporter) -> None:
    """The trace holds the call, the provider's charge, the wallet's and the ledger's calls, stages and transactions."""
    checkout = unique("c")
    with platform.client() as client:
        client.create_payment(checkout, [new_order(f"{checkout}-1", "b", "s", "1.00", "EUR")], credit_card_info="tok_visa")
    spans = exporter.get_finished_spans()
    root = next(s for s in reversed(spans) if s.name == "CreatePayment" and s.parent is None)
    names = {s.name for s in spans if s.context.trace_id == root.context.trace_id}
    assert names >= {
        "CreatePayment", "tallystick.payment.v1.PaymentService/CreatePayment", "payment.accept", "sandbox charge", "payment.record", "payment.settle",
        "tallystick.wallet.v1.BatchCredit", "tallystick.wallet.v1.WalletService/BatchCredit", "wallet.change",
        "tallystick.ledger.v1.BatchPost", "tallystick.ledger.v1.LedgerService/BatchPost", "ledger.post",
    }  # fmt: skip
    assert any(name.startswith("transaction ") for name in names)


def test_a_batch_is_linked_to_every_member(platform: Platform, exporter: InMemorySpanExporter) -> None:
    """Two charges in one settle batch: the batch stands in the first one's trace, and links to the other's."""
    checkout = unique("c")
    with platform.client() as client:
        client.create_payment(checkout, [new_order(f"{checkout}-{n}", "b", "s", "1.00", "EUR") for n in range(40)], credit_card_info="tok_visa")
    batches = [s for s in exporter.get_finished_spans() if s.name == "sandbox.log" and (s.attributes or {}).get("batch.size", 0) > 1]
    assert batches
    assert all(len(s.links) < s.attributes["batch.size"] for s in batches if s.attributes)
    assert any(s.links for s in batches)
