"""The client: reads a statement file to check it, sends it and has it compared, as the command
`tallystick reconcile` does. Prints seconds, peak memory in MB and the id of the file as one JSON
object.

python -m benchmarks.reconcile.client ADDRESS TOKEN ACCOUNT FILE
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import read_peak_mb
from tallystick import Client, ClientSettings
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_server.reconciliation.formats.messages import (
    content_digest,
    create_request,
    to_messages,
)
from tallystick_server.reconciliation.formats.registry import find_format, read_blocks
from tallystick_server.reconciliation.formats.text_file import TextFile


def main(address: str, token: str, account: str, path: Path) -> None:
    with Client(address, settings=ClientSettings(token=token)) as client:
        client.reconciliation.ListBreakRules(pb.ListBreakRulesRequest())  # connects
        result = reconcile(client, account, path)
    print(json.dumps({**result, "peak_mb": read_peak_mb(os.getpid())}))


def reconcile(client: Client, account: str, path: Path) -> dict[str, Any]:
    """Reconciles a file. Returns its id and the seconds of each part."""
    start = sent = time.perf_counter()

    def note_time(_item_count: int) -> None:
        nonlocal sent
        sent = time.perf_counter()

    text_file = TextFile(path)
    format_ = find_format(text_file)
    for _ in read_blocks(text_file, format_):  # nothing of a damaged file is sent
        pass
    checked = time.perf_counter()
    request = create_request(path.name, content_digest(path), format_.name, account)
    items = to_messages(read_blocks(text_file, format_))
    response = client.reconcile_statement_file(request, items, on_progress=note_time)
    end = time.perf_counter()
    return {
        "statement_file_id": response.statement_file.statement_file_id,
        "seconds": end - start,
        "check_seconds": checked - start,
        "send_seconds": sent - checked,
        "match_seconds": end - sent,
    }


if __name__ == "__main__":
    address, token, account, file = sys.argv[1:]
    main(address, token, account, Path(file))
