"""The list calls and the explanations that are measured."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.seed.monitoring import LARGE_TRACE_ID
from benchmarks.seed.templates import CLEARING_ACCOUNT, PAYMENT_TOKENS, template_id
from tallystick import AsyncClient
from tallystick.event.v1 import event_service_pb2
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.monitoring.v1 import monitoring_pb2, monitoring_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2, reconciliation_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_server.observability.names import BATCH_QUEUE_LENGTH, RPC_SERVER_CALL_DURATION
from tallystick_server.rpc.pagination import PageToken
from tallystick_storage.payout.batches import ReportFilter

ClientCall = Callable[[AsyncClient], Any]


def _timestamp(days_ago: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.now(UTC) - timedelta(days=days_ago))
    return timestamp


def _payments(**filters: Any) -> ClientCall:
    return lambda client: client.payment.ListPayments(
        payment_service_pb2.ListPaymentsRequest(**filters)
    )


def _payouts(**filters: Any) -> ClientCall:
    return lambda client: client.payout.ListPayouts(
        payout_service_pb2.ListPayoutsRequest(**filters)
    )


def _batch(**filters: Any) -> ClientCall:
    return lambda client: client.payout.GetPayoutBatch(
        payout_service_pb2.GetPayoutBatchRequest(**filters)
    )


def _transactions(**filters: Any) -> ClientCall:
    return lambda client: client.ledger.ListTransactions(
        ledger_service_pb2.ListTransactionsRequest(**filters)
    )


def _explain_payment(id_: str) -> ClientCall:
    return lambda client: client.payment.ExplainPayment(
        payment_service_pb2.ExplainPaymentRequest(id=id_)
    )


def _explain_payout(id_: str) -> ClientCall:
    return lambda client: client.payout.ExplainPayout(
        payout_service_pb2.ExplainPayoutRequest(id=id_)
    )


def _breaks(**filters: Any) -> ClientCall:
    return lambda client: client.reconciliation.ListBreaks(
        reconciliation_service_pb2.ListBreaksRequest(**filters)
    )


def _files(**filters: Any) -> ClientCall:
    return lambda client: client.reconciliation.ListStatementFiles(
        reconciliation_service_pb2.ListStatementFilesRequest(**filters)
    )


def _expected_entries(**filters: Any) -> ClientCall:
    return lambda client: client.reconciliation.ListExpectedEntries(
        reconciliation_service_pb2.ListExpectedEntriesRequest(
            account=CLEARING_ACCOUNT, currency="EUR", **filters
        )
    )


def _lines(**filters: Any) -> ClientCall:
    return lambda client: client.reconciliation.ListStatementLines(
        reconciliation_service_pb2.ListStatementLinesRequest(statement_file_id="file-2", **filters)
    )


def _query(
    metric: str, days: float, **fields: Any
) -> monitoring_service_pb2.GetMetricHistoryRequest:
    return monitoring_service_pb2.GetMetricHistoryRequest(
        metric=metric, start_time=_timestamp(days), **fields
    )


def _history(metric: str, days: float, **fields: Any) -> ClientCall:
    return lambda client: client.monitoring.GetMetricHistory(_query(metric, days, **fields))


def _traces(**filters: Any) -> ClientCall:
    return lambda client: client.monitoring.ListTraces(
        monitoring_service_pb2.ListTracesRequest(**filters)
    )


_CALL_DURATION = RPC_SERVER_CALL_DURATION.name
_OPEN, _FAILED = payment_pb2.PAYMENT_STATE_OPEN, payment_pb2.PAYMENT_STATE_FAILED
LIST_CALLS: dict[str, ClientCall] = {
    "ListPayments": _payments(),
    "ListPayments of a seller": _payments(seller_account="s-1"),
    "ListPayments of a large seller": _payments(seller_account="s-3"),
    "ListPayments of a buyer": _payments(buyer_account="b-2"),
    "ListPayments OPEN": _payments(payment_state=_OPEN),
    "ListPayments FAILED": _payments(payment_state=_FAILED),
    "ListPayments PARTIALLY_PAID (none)": _payments(
        payment_state=payment_pb2.PAYMENT_STATE_PARTIALLY_PAID
    ),
    "ListPayments of a time": _payments(
        create_time_from=_timestamp(20), create_time_until=_timestamp(10)
    ),
    "ListPayments before a time": _payments(create_time_until=_timestamp(25)),
    "ListPayments FAILED before a time": _payments(
        payment_state=_FAILED, create_time_until=_timestamp(15)
    ),
    "ListPayouts": _payouts(),
    "ListPayouts of a seller": _payouts(seller_account="s-1"),
    "ListPayouts AWAITING_APPROVAL": _payouts(
        payout_state=payout_pb2.PAYOUT_STATE_AWAITING_APPROVAL
    ),
    "ListPayouts FAILED": _payouts(payout_state=payout_pb2.PAYOUT_STATE_FAILED),
    "ListPayouts RETURNED (none)": _payouts(payout_state=payout_pb2.PAYOUT_STATE_RETURNED),
    "ListPayouts before a time": _payouts(create_time_until=_timestamp(5)),
    "ListPayoutDestinations": lambda client: client.payout.ListPayoutDestinations(
        payout_service_pb2.ListPayoutDestinationsRequest()
    ),
    "ListPayoutDestinations UNUSABLE (none)": lambda client: client.payout.ListPayoutDestinations(
        payout_service_pb2.ListPayoutDestinationsRequest(
            state=payout_pb2.PAYOUT_DESTINATION_STATE_UNUSABLE
        )
    ),
    "ListPayouts of a batch": _payouts(payout_batch_id="batch-1"),
    "GetPayoutBatch of two payouts": _batch(payout_batch_id="batch-2"),
    "GetPayoutBatch, second page": _batch(
        payout_batch_id="batch-1",
        page_token=PageToken("GetPayoutBatch", *ReportFilter("batch-1", "", False)).make("p-2"),
    ),
    "GetPayoutSchedule": lambda client: client.payout.GetPayoutSchedule(
        payout_service_pb2.GetPayoutScheduleRequest(seller_account="s-1", currency="EUR")
    ),
    "GetPayoutSchedule, default": lambda client: client.payout.GetPayoutSchedule(
        payout_service_pb2.GetPayoutScheduleRequest(currency="EUR")
    ),
    "ListDeadLetters": lambda client: client.payment.ListDeadLetters(
        operator_pb2.ListDeadLettersRequest()
    ),
    "ListAlerts": lambda client: client.payment.ListAlerts(operator_pb2.ListAlertsRequest()),
    "ListAlerts, with ended ones": lambda client: client.payment.ListAlerts(
        operator_pb2.ListAlertsRequest(ended=True)
    ),
    "ListAlerts of wallets": lambda client: client.wallet.ListAlerts(
        operator_pb2.ListAlertsRequest()
    ),
    "ListAlerts of the ledger": lambda client: client.ledger.ListAlerts(
        operator_pb2.ListAlertsRequest()
    ),
    "ListUnappliedCharges": lambda client: client.payment.ListUnappliedCharges(
        payment_service_pb2.ListUnappliedChargesRequest()
    ),
    "ListUnappliedCharges, with acknowledged ones": lambda client: (
        client.payment.ListUnappliedCharges(
            payment_service_pb2.ListUnappliedChargesRequest(acknowledged=True)
        )
    ),
    "ListWallets": lambda client: client.wallet.ListWallets(
        wallet_service_pb2.ListWalletsRequest()
    ),
    "ListWallets in a currency": lambda client: client.wallet.ListWallets(
        wallet_service_pb2.ListWalletsRequest(currency="EUR")
    ),
    "ListWallets in a currency (none)": lambda client: client.wallet.ListWallets(
        wallet_service_pb2.ListWalletsRequest(currency="JPY")
    ),
    "ListWalletEntries": lambda client: client.wallet.ListWalletEntries(
        wallet_service_pb2.ListWalletEntriesRequest(seller_account="s-1", currency="EUR")
    ),
    "ListWalletEntries of a source": lambda client: client.wallet.ListWalletEntries(
        wallet_service_pb2.ListWalletEntriesRequest(
            seller_account="s-1", currency="EUR", source_id="PAY_IN/none"
        )
    ),
    "ListEntriesOfSources": lambda client: client.wallet.ListEntriesOfSources(
        wallet_service_pb2.ListEntriesOfSourcesRequest(
            source_ids=[f"PAY_IN/o-{number}" for number in range(100)]
        )
    ),
    "ListEvents": lambda client: client.event.ListEvents(
        event_service_pb2.ListEventsRequest(
            aggregate_ids=[f"payments/c-{number}" for number in range(100)]
        )
    ),
    **{f"ExplainPayment ({kind})": _explain_payment(template_id(kind)) for kind in PAYMENT_TOKENS},
    "ExplainPayout (PAID)": _explain_payout(template_id("PAID")),
    "Explain (PAID)": lambda client: client.reconciliation.Explain(
        reconciliation_service_pb2.ExplainRequest(id=template_id("PAID"))
    ),
    "ListHolds": lambda client: client.wallet.ListHolds(
        wallet_service_pb2.ListHoldsRequest(seller_account="s-1")
    ),
    "ListAccounts": lambda client: client.ledger.ListAccounts(
        ledger_service_pb2.ListAccountsRequest()
    ),
    "ListAccounts of a prefix": lambda client: client.ledger.ListAccounts(
        ledger_service_pb2.ListAccountsRequest(prefix="sellers/")
    ),
    "ListAccounts in a currency (none)": lambda client: client.ledger.ListAccounts(
        ledger_service_pb2.ListAccountsRequest(currency="JPY")
    ),
    "ListTransactions": _transactions(),
    "ListTransactions REVERSAL (none)": _transactions(kind=ledger_pb2.TRANSACTION_KIND_REVERSAL),
    "ListTransactions of a buyer": _transactions(buyer_account="b-7"),
    "ListTransactions of an account": _transactions(account="sellers/s-7"),
    "ListTransactions of the clearing account": _transactions(account="psp/sandbox/clearing"),
    "ListTransactions of a source": _transactions(source_id="o-77"),
    "ListTransactions of many sources": _transactions(
        source_ids=[f"o-{number}" for number in range(100)]
    ),
    "ListTransactions before any": _transactions(post_time_until=_timestamp(90)),
    "ListTransactions since a time": _transactions(post_time_from=_timestamp(90)),
    "GetAccount of the clearing account": lambda client: client.ledger.GetAccount(
        ledger_service_pb2.GetAccountRequest(account="psp/sandbox/clearing", currency="EUR")
    ),
    "ListStatementFiles": _files(),
    "ListStatementFiles of an account": _files(account=CLEARING_ACCOUNT),
    "ListStatementFiles of an account (none)": _files(account="banks/none"),
    "ListStatementLines": _lines(),
    "ListStatementLines, last page": _lines(
        page_token=PageToken("ListStatementLines", "file-2").make(900)
    ),
    "GetStatementFile": lambda client: client.reconciliation.GetStatementFile(
        reconciliation_service_pb2.GetStatementFileRequest(statement_file_id="file-2")
    ),
    "ListBreaks": _breaks(),
    "ListBreaks OPEN": _breaks(state=reconciliation_pb2.BREAK_STATE_OPEN),
    "ListBreaks AWAITING_APPROVAL (none)": _breaks(
        state=reconciliation_pb2.BREAK_STATE_AWAITING_APPROVAL
    ),
    "ListBreaks of a class": _breaks(break_class=reconciliation_pb2.BREAK_CLASS_FINANCE),
    "ListBreaks of a class (none)": _breaks(break_class=reconciliation_pb2.BREAK_CLASS_AUTOMATIC),
    "ListBreaks of a kind": _breaks(kind=reconciliation_pb2.BREAK_KIND_CHARGE_UNKNOWN),
    "ListBreaks of a kind (none)": _breaks(kind=reconciliation_pb2.BREAK_KIND_RESERVE),
    "ListBreaks of an account": _breaks(account=CLEARING_ACCOUNT),
    "ListBreaks of an account (none)": _breaks(account="banks/none"),
    "ListBreaks of an assignee": _breaks(assignee="ann"),
    "ListBreaks of an assignee (none)": _breaks(assignee="nobody"),
    "ListBreaks of a file": _breaks(statement_file_id="file-2"),
    "ListBreaks of a file (none)": _breaks(statement_file_id="file-none"),
    "ListBreaks OPEN of a class": _breaks(
        state=reconciliation_pb2.BREAK_STATE_OPEN,
        break_class=reconciliation_pb2.BREAK_CLASS_FINANCE,
    ),
    "ListBreaks OPEN of a class (none)": _breaks(
        state=reconciliation_pb2.BREAK_STATE_OPEN,
        break_class=reconciliation_pb2.BREAK_CLASS_AUTOMATIC,
    ),
    "ListBreaks OPEN of an account": _breaks(
        state=reconciliation_pb2.BREAK_STATE_OPEN, account=CLEARING_ACCOUNT
    ),
    "GetBreak": lambda client: client.reconciliation.GetBreak(
        reconciliation_service_pb2.GetBreakRequest(break_id="f2-2")
    ),
    "ListExpectedEntries": _expected_entries(),
    "ListExpectedEntries of an age": _expected_entries(min_age_days=1),
    "ListExpectedEntries of an age (none)": _expected_entries(min_age_days=30_000),
    "ListBreakRules": lambda client: client.reconciliation.ListBreakRules(
        reconciliation_service_pb2.ListBreakRulesRequest()
    ),
    "ListAlerts of reconciliation": lambda client: client.reconciliation.ListAlerts(
        operator_pb2.ListAlertsRequest()
    ),
    "ListMetricSeries": lambda client: client.monitoring.ListMetricSeries(
        monitoring_service_pb2.ListMetricSeriesRequest()
    ),
    "ListMetricSeries of a metric": lambda client: client.monitoring.ListMetricSeries(
        monitoring_service_pb2.ListMetricSeriesRequest(metric=_CALL_DURATION)
    ),
    "ListTraces": _traces(),
    "GetTrialBalance, first page": lambda client: client.ledger.GetTrialBalance(
        ledger_service_pb2.GetTrialBalanceRequest(page_size=200)
    ),
}
"""Each list and explanation as an operator calls it, with the filters that could be expensive."""
BOUNDED_LIST_CALLS: dict[str, ClientCall] = {
    "ListPayments of a seller and a state": _payments(seller_account="s-3", payment_state=_FAILED),
    "ListPayments of a seller and a state (none)": _payments(
        seller_account="s-3", payment_state=payment_pb2.PAYMENT_STATE_PARTIALLY_PAID
    ),
    "ListPayments of a seller and a buyer": _payments(seller_account="s-3", buyer_account="b-1"),
    "ListPayments PAID": _payments(payment_state=payment_pb2.PAYMENT_STATE_PAID),
    "ListPayouts of a seller and a state (none)": _payouts(
        seller_account="s-3", payout_state=payout_pb2.PAYOUT_STATE_RETURNED
    ),
    "ListPayouts of a batch and a state": _payouts(
        payout_batch_id="batch-1", payout_state=payout_pb2.PAYOUT_STATE_FAILED
    ),
    "GetPayoutBatch of 1,000 payouts": _batch(payout_batch_id="batch-1"),
    "GetPayoutBatch, rejected (none)": _batch(payout_batch_id="batch-1", rejected=True),
    "GetPayoutBatch FAILED": _batch(
        payout_batch_id="batch-1", payout_state=payout_pb2.PAYOUT_STATE_FAILED
    ),
    "ListPayouts PAID": _payouts(payout_state=payout_pb2.PAYOUT_STATE_PAID),
    "ListTransactions in a currency (none)": _transactions(currency="JPY"),
    "ListTraces that failed": _traces(failed=True),
    "ListTraces that were slow (none)": _traces(min_duration=Duration(seconds=60)),
    "GetTrace of 2,000 spans": lambda client: client.monitoring.GetTrace(
        monitoring_service_pb2.GetTraceRequest(trace_id=LARGE_TRACE_ID)
    ),
    "GetMetricHistory of an hour": _history(
        _CALL_DURATION, 1 / 24, aggregation=monitoring_pb2.AGGREGATION_RATE
    ),
    "GetMetricHistory of 30 days": _history(
        _CALL_DURATION,
        29.9,
        aggregation=monitoring_pb2.AGGREGATION_QUANTILE,
        quantile="0.99",
        group_by=["rpc.method"],
    ),
    "GetMetricHistory of a gauge": _history(
        BATCH_QUEUE_LENGTH.name, 1, aggregation=monitoring_pb2.AGGREGATION_MAX
    ),
    "BatchGetMetricHistories of an hour": lambda client: client.monitoring.BatchGetMetricHistories(
        monitoring_service_pb2.BatchGetMetricHistoriesRequest(
            queries=[_query(name, 1 / 24) for name in (_CALL_DURATION, BATCH_QUEUE_LENGTH.name) * 2]
        )
    ),
    "ListBreaks OPEN of a kind and an account (none)": _breaks(
        state=reconciliation_pb2.BREAK_STATE_OPEN,
        kind=reconciliation_pb2.BREAK_KIND_CHARGE_UNKNOWN,
        account="banks/none",
    ),
    "ListBreaks of a class and an account (none)": _breaks(
        break_class=reconciliation_pb2.BREAK_CLASS_AUTOMATIC, account=CLEARING_ACCOUNT
    ),
}
"""Lists that scan a bounded number of rows, batches, whose totals are counted, and the history of a
metric, which reads each step of each series, of a gauge each sample.
"""
