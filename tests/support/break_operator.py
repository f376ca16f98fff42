"""What operators do about breaks."""

from __future__ import annotations

from dataclasses import dataclass

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb


@dataclass
class Operator:
    """An operator who deals with breaks. Each method returns the break after the call."""

    client: Client

    def get(self, break_id: str) -> reconciliation_pb2.Break:
        """A break as a whole."""
        request = pb.GetBreakRequest(break_id=break_id)
        return self.client.reconciliation.GetBreak(request).reconciliation_break

    def open(
        self,
        account: str,
        transaction_id: str,
        reason: str = "not on the statement",
        entry_number: int = 0,
    ) -> reconciliation_pb2.Break:
        """Opens a break for a ledger entry."""
        request = pb.OpenBreakRequest(
            account=account,
            transaction_id=transaction_id,
            entry_number=entry_number,
            reason=reason,
        )
        return self.client.reconciliation.OpenBreak(request).reconciliation_break

    def assign(self, break_id: str, assignee: str) -> reconciliation_pb2.Break:
        request = pb.AssignBreakRequest(break_id=break_id, assignee=assignee)
        return self.client.reconciliation.AssignBreak(request).reconciliation_break

    def comment(self, break_id: str, comment: str = "seen") -> reconciliation_pb2.Break:
        request = pb.CommentOnBreakRequest(break_id=break_id, comment=comment)
        return self.client.reconciliation.CommentOnBreak(request).reconciliation_break

    def resolve(
        self, break_id: str, resolution: str, reason: str = "checked"
    ) -> reconciliation_pb2.Break:
        """`resolution`: ADJUST, ACCEPT or WRITE_OFF."""
        request = pb.ResolveBreakRequest(
            break_id=break_id,
            resolution=reconciliation_pb2.Resolution.Value(f"RESOLUTION_{resolution}"),
            reason=reason,
        )
        return self.client.reconciliation.ResolveBreak(request).reconciliation_break

    def approve(
        self, break_id: str, reason: str = "agreed", version: int | None = None
    ) -> reconciliation_pb2.Break:
        """`version`: that was seen; None: any."""
        request = pb.ApproveBreakResolutionRequest(
            break_id=break_id, reason=reason, expected_version=version
        )
        return self.client.reconciliation.ApproveBreakResolution(request).reconciliation_break

    def reject(
        self, break_id: str, reason: str = "no", version: int | None = None
    ) -> reconciliation_pb2.Break:
        """`version`: that was seen; None: any."""
        request = pb.RejectBreakResolutionRequest(
            break_id=break_id, reason=reason, expected_version=version
        )
        return self.client.reconciliation.RejectBreakResolution(request).reconciliation_break

    def reopen(self, break_id: str, reason: str = "wrong") -> reconciliation_pb2.Break:
        request = pb.ReopenBreakRequest(break_id=break_id, reason=reason)
        return self.client.reconciliation.ReopenBreak(request).reconciliation_break

    def match(self, *break_ids: str, reason: str = "they agree") -> list[reconciliation_pb2.Break]:
        request = pb.MatchBreaksRequest(break_ids=break_ids, reason=reason)
        return list(self.client.reconciliation.MatchBreaks(request).breaks)


def state_of(found: reconciliation_pb2.Break) -> str:
    """The state of a break, such as "OPEN"."""
    return reconciliation_pb2.BreakState.Name(found.state).removeprefix("BREAK_STATE_")


def resolution_of(found: reconciliation_pb2.Break) -> str:
    """How a break was resolved, such as "ADJUST"."""
    return reconciliation_pb2.Resolution.Name(found.resolution).removeprefix("RESOLUTION_")
