"""Recomputes the ledger's hash chain from the API alone (docs/reference/ledger-hash-chain.md).

Usage: python recompute_chain.py [ADDRESS]
"""

import sys
from hashlib import sha256

from tallystick import Client
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2


def recompute(previous: bytes, tx: ledger_pb2.Transaction) -> bytes:
    book, sequence = tx.transaction_id.split("-")
    kind = ledger_pb2.TransactionKind.Name(tx.kind).removeprefix("TRANSACTION_KIND_")
    reverses = tx.reverses_transaction_id.partition("-")[2] or "0"
    fields: list[str | int] = [
        book,
        sequence,
        kind,
        tx.source_id,
        tx.caller,
        tx.description,
        tx.external_reference,
        tx.buyer_account,
        reverses,
    ]
    fields += [tx.effective_time.ToMicroseconds(), tx.post_time.ToMicroseconds()]
    for entry in tx.entries:
        sign = -1 if entry.direction == ledger_pb2.DIRECTION_DEBIT else 1
        fields += [entry.account, entry.currency, sign * int(entry.amount.replace(".", ""))]
    return sha256(
        previous
        + b"".join(b"%d:%b" % (len(raw), raw) for raw in (str(field).encode() for field in fields))
    ).digest()


if __name__ == "__main__":
    head = bytes(32)
    with Client(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070") as client:
        for step in client.ledger.StreamEntries(ledger_service_pb2.StreamEntriesRequest()):
            if recompute(head, step.transaction) != step.transaction.hash:
                sys.exit(f"the chain is broken at {step.transaction.transaction_id}")
            head = step.transaction.hash
    print(f"the chain holds; its head is {head.hex()}")
