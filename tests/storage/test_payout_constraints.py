"""Each payout invariant that the database enforces: direct SQL under the service's own role
violates it, and is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest

from tallystick import new_order
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.payout.destination import DESTINATION_TRANSITIONS
from tallystick_core.payout.state import TRANSITIONS, PayoutTrigger
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.constraints import EMPTY_TEXT, ZERO_HASH, execute_as, insert_event
from tests.support.platform import eventually, fresh_database, serve_platform


@pytest.fixture(scope="module")
def filled_database(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DatabaseUrls]:
    """A database with a paid payout, one that waits for approval, a schedule and a batch; no
    process serves it any more.
    """
    with fresh_database(admin_url, tmp_path_factory.mktemp("filled")) as databases:
        settings = Settings().replace(
            worker__scan_interval=0.1, payout__approval_threshold={"EUR": 200}
        )
        with serve_platform(databases, settings) as platform, platform.client() as client:
            client.create_payment(
                "c", [new_order("o", "b", "s", "10.00", "EUR")], credit_card_info="tok_visa"
            )
            destination_request = pb.CreatePayoutDestinationRequest(
                payout_destination_id="d",
                seller_account="s",
                currency="EUR",
                bank_account_token="ba_ok",
            )
            client.payout.CreatePayoutDestination(destination_request)
            get_request = pb.GetPayoutDestinationRequest(payout_destination_id="d")
            verified_state = payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED
            assert eventually(
                lambda: (
                    client.payout.GetPayoutDestination(get_request).payout_destination.state
                    == verified_state
                )
            )
            for payout_id, amount in (("paid", "2.00"), ("waiting", "3.00")):
                client.payout.CreatePayout(
                    pb.CreatePayoutRequest(
                        payout_id=payout_id, seller_account="s", amount=amount, currency="EUR"
                    )
                )
            assert eventually(
                lambda: (
                    client.payout.GetPayout(
                        pb.GetPayoutRequest(payout_id="paid")
                    ).payout.ledger_updated
                )
            )
            manual_interval = payout_pb2.PAYOUT_INTERVAL_MANUAL
            client.payout.SetPayoutSchedule(
                pb.SetPayoutScheduleRequest(
                    seller_account="s", currency="EUR", interval=manual_interval
                )
            )
            batch_request = pb.CreatePayoutBatchRequest(
                payout_batch_id="b", run=pb.NewPayoutRun(seller_account="nobody", currency="EUR")
            )
            client.payout.CreatePayoutBatch(batch_request)
            done_state = payout_pb2.PAYOUT_BATCH_STATE_DONE
            assert eventually(
                lambda: (
                    client.payout.GetPayoutBatch(
                        pb.GetPayoutBatchRequest(payout_batch_id="b")
                    ).payout_batch.state
                    == done_state
                )
            )
        yield databases


def transition_payout(
    next_state: str,
    *,
    version: int = 6,
    transition_reason: str = "PROVIDER_OUTCOME",
    booked: str = "false",
    payout_id: str = "paid",
    with_event: bool = True,
) -> str:
    """A transition of the paid payout, with its history and its event, in one statement."""
    event_clause = f"x as ({insert_event(f'payouts/{payout_id}', version)})," if with_event else ""
    return (
        f"with {event_clause} h as (insert into payout_history select payout_id, {version}, state, "
        f"'{next_state}', '{transition_reason}', {booked}, '', '', clock() from payout where "
        f"payout_id = '{payout_id}') update payout set state = '{next_state}', booked = "
        f"{booked}, version = {version}, update_time = clock() where payout_id = '{payout_id}'"
    )


def acknowledge_all(table: str, **values: str) -> str:
    """An update that acknowledges everything in a table."""
    columns = {
        "acknowledged_by": "'ann'",
        "acknowledge_reason": "'x'",
        "acknowledge_time": "clock()",
        **values,
    }
    return f"update {table} set {', '.join(f'{name} = {value}' for name, value in columns.items())}"


OTHER_TEXT = "'y'"
INSERT_REPORT = "insert into conflicting_report values ('paid', 1, 'Declined', clock())"
ACKNOWLEDGED_TRANSITION = transition_payout(
    "PAID", booked="true", transition_reason="ACKNOWLEDGED"
).replace("'', '', clock()", "'ann', 'x', clock()")
CASES = [
    (
        "P3 a paid payout that fails",
        transition_payout("FAILED").replace(
            "booked = false", "booked = false, failure_reason = 'PROVIDER_DECLINED'"
        ),
        "P0001",
    ),
    ("P3 a payout that goes back", transition_payout("SUBMITTED"), "P0001"),
    (
        "P3 a payout that waits for approval and is sent",
        transition_payout("SUBMITTING", version=3, payout_id="waiting").replace(
            "booked = false", "booked = false, attempt_count = 1"
        ),
        "P0001",
    ),
    (
        "P3 a payout that is booked in flight",
        "update payout set booked = true, version = 3 where payout_id = 'waiting'",
        "23514",
    ),
    (
        "P3 a payout that is booked by no booking",
        transition_payout("PAID", booked="true"),
        "P0001",
    ),
    (
        "P3 a payout that fails without a reason",
        "update payout set state = 'FAILED', version = 3 where payout_id = 'waiting'",
        "23514",
    ),
    (
        "P4 a payout without its history",
        (
            f"with x as ({insert_event('payouts/paid', 6)}) update payout set version = 6 where "
            "payout_id = 'paid'"
        ),
        "P0001",
    ),
    (
        "P4 history without its payout",
        (
            f"with x as ({insert_event('payouts/none', 1)}) insert into payout_history values "
            "('none', 1, null, 'CREATED', 'CREATED', false, '', '', clock())"
        ),
        "P0001",
    ),
    ("P4 history with a gap", transition_payout("RETURNED", version=7), "P0001"),
    ("P4 history that is changed", "update payout_history set actor = 'me'", "42501"),
    ("E1 a transition without an event", transition_payout("RETURNED", with_event=False), "P0001"),
    ("E1 an event of no change", insert_event("payouts/paid", 6), "P0001"),
    ("E1 an event of no destination", insert_event("payoutDestinations/x", 1), "P0001"),
    ("E1 an event of no batch", insert_event("payoutBatches/x", 1), "P0001"),
    ("E1 an event of no schedule", insert_event("payoutSchedules/x/EUR", 1), "P0001"),
    (
        "O1 an amount that is not the fee and what the bank gets",
        "update payout set amount = 1",
        "42501",
    ),
    (
        "O2 a second transfer that was asked for",
        (
            "insert into transfer values ('sandbox', 'r2', 'paid', 'AFTER_FAILURE', 'paid', 200, "
            "'EUR', null, '', clock(), null)"
        ),
        "23505",
    ),
    (
        "O2 a transfer that was asked for under another id",
        (
            "insert into transfer values ('sandbox', 'r2', 'paid', 'EXACT', 't-x', 200, 'EUR', "
            "null, '', clock(), null)"
        ),
        "23514",
    ),
    (
        "O2 the same transfer twice",
        (
            "insert into transfer select provider, provider_reference, payout_id, 'DUPLICATE', "
            "'t-x', 1, 'EUR', null, '', clock(), null from transfer"
        ),
        "23505",
    ),
    ("O2 a transfer that is changed", "update transfer set amount = 1", "42501"),
    (
        "O2 a transfer that is returned without a time",
        "update transfer set returned_amount = 5, returned_currency = 'EUR'",
        "23514",
    ),
    (
        "O2 an acknowledgement of a transfer that was asked for",
        f"{ACKNOWLEDGED_TRANSITION}; {acknowledge_all('transfer')}",
        "23514",
    ),
    (
        "O2 a return of a transfer that stays acknowledged",
        f"{ACKNOWLEDGED_TRANSITION}; insert into transfer values ('sandbox', 'r2', 'paid', "
        f"'DUPLICATE', 't-x', 1, 'EUR', null, '', clock(), null); {acknowledge_all('transfer')} "
        "where match = 'DUPLICATE'; update transfer set returned_amount = 1, returned_currency = "
        "'EUR', return_time = clock() where match = 'DUPLICATE'",
        "P0001",
    ),
    (
        "a report that is acknowledged without its history",
        f"{INSERT_REPORT}; {acknowledge_all('conflicting_report')}",
        "P0001",
    ),
    (
        "a report that is acknowledged for another reason than its history says",
        (
            f"{ACKNOWLEDGED_TRANSITION}; {INSERT_REPORT}; "
            f"{acknowledge_all('conflicting_report', acknowledge_reason=OTHER_TEXT)}"
        ),
        "P0001",
    ),
    (
        "a report that is acknowledged without a reason",
        f"{INSERT_REPORT}; {acknowledge_all('conflicting_report', acknowledge_reason=EMPTY_TEXT)}",
        "23514",
    ),
    (
        "a report that is acknowledged without a time",
        f"{INSERT_REPORT}; {acknowledge_all('conflicting_report', acknowledge_time='null')}",
        "23514",
    ),
    (
        "a report that is acknowledged twice",
        (
            f"{ACKNOWLEDGED_TRANSITION}; {INSERT_REPORT}; {acknowledge_all('conflicting_report')}; "
            f"{acknowledge_all('conflicting_report')}"
        ),
        "P0001",
    ),
    (
        "a report that is acknowledged no more",
        (
            f"{ACKNOWLEDGED_TRANSITION}; {INSERT_REPORT}; {acknowledge_all('conflicting_report')}; "
            "update conflicting_report set acknowledged_by = ''"
        ),
        "P0001",
    ),
    ("a report that is changed", "update conflicting_report set report = 'x'", "42501"),
    ("the same report twice", f"{INSERT_REPORT}; {INSERT_REPORT.replace('1', '2')}", "23505"),
    (
        "an acknowledgement by nobody",
        transition_payout("PAID", booked="true", transition_reason="ACKNOWLEDGED"),
        "P0001",
    ),
    (
        "an acknowledgement that leaves the payout to be booked",
        transition_payout("PAID", transition_reason="ACKNOWLEDGED").replace(
            "'', '', clock()", "'ann', 'x', clock()"
        ),
        "P0001",
    ),
    (
        "an acknowledgement before the payout is at its end",
        transition_payout(
            "AWAITING_APPROVAL", version=3, transition_reason="ACKNOWLEDGED", payout_id="waiting"
        ).replace("'', '', clock()", "'ann', 'x', clock()"),
        "P0001",
    ),
    (
        "O2 a second attempt",
        (
            "insert into attempt select kind, operation_id, 2, provider, 'k', amount, currency, "
            "'', '', null, null, '', '', null, null, '', '', '', clock(), null from attempt"
        ),
        "23505",
    ),
    (
        "O2 an attempt for another amount",
        (
            "insert into attempt values ('payout', 'waiting', 1, 'sandbox', 'k', 1, 'EUR', '', '', "
            "null, null, '', '', null, null, '', '', '', clock(), null)"
        ),
        "P0001",
    ),
    (
        "a destination without its event",
        f"insert into payout_destination values ('d2', 'c', 'c', {ZERO_HASH}, 's', 'EUR', 't', "
        "'', 'sandbox', '', 'PENDING_VERIFICATION', clock(), null, '', false, '', '', '', '', 1, "
        "'2020-01-01', clock())",
        "P0001",
    ),
    (
        "a destination that is verified again",
        "update payout_destination set state = 'PENDING_VERIFICATION', version = 3",
        "P0001",
    ),
    (
        "a destination that awaits approval and never did",
        "update payout_destination set awaits_approval = true, version = 3",
        "P0001",
    ),
    ("a destination whose owner changes", "update payout_destination set owner = 'mine'", "42501"),
    ("a payout whose owner changes", "update payout set owner = 'mine'", "42501"),
    (
        "a disabled destination without a name",
        "update payout_destination set state = 'DISABLED', version = 3",
        "23514",
    ),
    (
        "the account of a destination",
        "update payout_destination set bank_account_token = 'mine'",
        "42501",
    ),
    (
        "a batch that opens again",
        "update payout_batch set state = 'OPEN', version = 2, done_time = null",
        "P0001",
    ),
    (
        "a batch that counts on after its end",
        (
            "update payout_batch set item_count = item_count + 1, generated_count = "
            "generated_count + 1"
        ),
        "P0001",
    ),
    ("a batch that ended at another time", "update payout_batch set done_time = clock()", "P0001"),
    ("a batch that counts less", "update payout_batch set rejected_count = 0", "P0001"),
    (
        "a schedule that is put off without being counted",
        "update payout_schedule set next_run_time = clock()",
        "P0001",
    ),
    (
        "a manual schedule that is looked at",
        "update payout_schedule set version = version + 1, next_run_time = clock()",
        "23514",
    ),
    ("a schedule whose version stays", "update payout_schedule set fee = 7", "P0001"),
    (
        "a line of a report that is changed",
        "update payout_batch_item set state = 'CREATED', error = null",
        "P0001",
    ),
    (
        "a line that is rejected without a reason",
        "insert into payout_batch_item values ('b', 'x', 's', 1, 'EUR', '', 'REJECTED', null)",
        "23514",
    ),
    ("a payout that is deleted", "delete from payout", "42501"),
]


@pytest.mark.parametrize(
    ("sql", "sqlstate"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_database_rejects_invalid_rows(
    filled_database: DatabaseUrls, sql: str, sqlstate: str
) -> None:
    """The row that would violate the invariant is rejected, by the intended constraint, trigger or
    privilege.
    """
    assert execute_as(filled_database, "payout", sql) == sqlstate


@pytest.mark.parametrize(
    "table", ["payout_history", "payout_retry", "transfer", "conflicting_report"]
)
@pytest.mark.parametrize("sql", ["delete from {}", "truncate {} cascade"])
def test_triggers_reject_changes_without_privileges(
    filled_database: DatabaseUrls, table: str, sql: str
) -> None:
    """L4: with the privilege off (as administrator) the trigger still rejects the change."""
    assert (
        execute_as(filled_database, "payout", sql.format(f"payout.{table}"), role="owner")
        == "P0001"
    )


def query_definition(databases: DatabaseUrls, query: str) -> str:
    with psycopg.connect(databases.admin) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return str(row[0])


def test_transitions_in_the_database_equal_the_domain_table(filled_database: DatabaseUrls) -> None:
    """P3: the trigger on the history lists exactly the transitions of core's table; so does the
    trigger on destinations.
    """
    body = query_definition(
        filled_database, "select prosrc from pg_proc where proname = 'history_has_payout'"
    )
    database_transitions = set(re.findall(r"\('(\w+)', '(\w+)'\)", body))
    assert database_transitions == {
        (str(before), str(after)) for (before, _), after in TRANSITIONS.items() if before != after
    }
    unmatched = re.search(r"'UNMATCHED_TRANSFER'.*?h\.to_state in \((.*?)\)", body, re.DOTALL)
    assert unmatched is not None
    assert set(re.findall(r"\w+", unmatched[1])) == {
        str(state) for state, why in TRANSITIONS if why is PayoutTrigger.UNMATCHED_TRANSFER
    }
    trigger = query_definition(
        filled_database,
        "select pg_get_triggerdef(oid) from pg_trigger where tgname = 'follows_transitions' and "
        "tgrelid = 'payout.payout_destination'::regclass",
    )
    database_transitions = set(
        re.findall(r"old\.state = '(\w+)'::text\) AND \(new\.state = '(\w+)'::text", trigger)
    )
    assert database_transitions == {
        (str(before), str(after))
        for (before, _), after in DESTINATION_TRANSITIONS.items()
        if before != after
    }
