"""Builds ReconciliationService from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from tallystick_server.app.configuration import Settings
from tallystick_server.app.wiring import Service, ServiceImplementation, Wiring
from tallystick_server.operations.periodic import Periodic
from tallystick_server.reconciliation.balance_checks import BalanceChecks
from tallystick_server.reconciliation.booking_checks import BookingChecks
from tallystick_server.reconciliation.break_commands import BreakCommands
from tallystick_server.reconciliation.explain import Explainer
from tallystick_server.reconciliation.handlers import ACCESS, ReconciliationHandlers
from tallystick_server.reconciliation.ledger_reader import LedgerReader
from tallystick_server.reconciliation.lookup_requests import LookupRequests
from tallystick_server.reconciliation.posting_sender import PostingSender
from tallystick_server.reconciliation.reconcile_file import FileReconciler
from tallystick_server.reconciliation.service import SPEC
from tallystick_server.reconciliation.statement_files import StatementFiles
from tallystick_storage.alerts import AlertQuery
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import postings

_CLEANING_INTERVAL_SECONDS = 3600.0


def _build(wiring: Wiring, database: Database) -> Service:
    settings = wiring.settings.reconciliation
    ledger = wiring.addresses["ledger"]
    files = StatementFiles(database)
    reader = LedgerReader(database, wiring.service_client, ledger)
    sender = PostingSender(database, wiring.service_client, ledger, reader)
    wallet = wiring.addresses["wallet"]
    balance_checks = BalanceChecks(database, wiring.service_client, ledger, wallet)
    booking_checks = BookingChecks(
        database,
        wiring.service_client,
        wiring.addresses["event"],
        wallet,
        ledger,
        timedelta(seconds=settings.check_interval),
    )
    lookups = LookupRequests(
        database,
        wiring.service_client,
        wiring.addresses["payment"],
        wiring.addresses["payout"],
    )
    # a statement on a million lines takes longer than those of payments may
    file_database = wiring.open_database_for_long_statements(SPEC.name)
    handlers = ReconciliationHandlers(
        database,
        files,
        FileReconciler(file_database, settings.approval_threshold),
        BreakCommands(database, settings.approval_threshold),
        reader,
        Explainer(
            database,
            wiring.service_client,
            wiring.addresses["payment"],
            wiring.addresses["payout"],
        ),
    )
    return Service(
        SPEC,
        handlers,
        [
            Periodic("reconciliation.postings", settings.posting_interval, sender.run_once),
            Periodic(
                "reconciliation.balance_checks", settings.check_interval, balance_checks.run_once
            ),
            Periodic(
                "reconciliation.booking_checks", settings.check_interval, booking_checks.run_once
            ),
            Periodic("reconciliation.lookups", settings.lookup_interval, lookups.run_once),
            Periodic("reconciliation.cleaning", _CLEANING_INTERVAL_SECONDS, files.delete_abandoned),
        ],
        [database, file_database],
    )


def _alert_queries(settings: Settings) -> Sequence[AlertQuery]:
    return postings.alert_queries(
        settings.reconciliation.alert_breaks_after,
        settings.reconciliation.alert_postings_after,
        settings.reconciliation.alert_entries_after,
        settings.worker.events_alert_after,
    )


IMPLEMENTATION = ServiceImplementation(ACCESS, _build, _alert_queries, postings.gauge_queries())
