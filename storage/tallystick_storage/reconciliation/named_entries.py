"""SQL that finds the ledger's entries that a line names."""

from __future__ import annotations

from collections.abc import Sequence

IS_PAYOUT = "i.account like 'payouts/%/clearing'"
IN_ACCOUNTS = f"(i.account = any (cast(:accounts as text[])) or :is_bank and {IS_PAYOUT})"
"""The accounts of the entries that lines can match: a bank statement has what providers pay in, and
what pays payouts.
"""

AT_BANK = "(i.account like 'banks/%' or i.account like 'payouts/%')"
"""The entries of which `open_item_by_amount` is the index: those that the lines of banks match."""


def same_entry(left: str, right: str) -> str:
    """Whether two rows are of the same ledger entry."""
    key = ("book", "sequence", "entry_number")
    return (
        f"({', '.join(f'{left}.{name}' for name in key)}) = "
        f"({', '.join(f'{right}.{name}' for name in key)})"
    )


IS_OPEN = f"exists (select from open_item o where {same_entry('o', 'i')} offset 0)"
"""Whether neither a line nor a break has the entry `i` of ledger_item: one lookup by its key."""


def our_id(line: str) -> str:
    """The id of what was booked, from the id that the platform gave to the provider."""
    return (
        f"case when {line}.line_type = 'CHARGE' and {line}.client_reference like 'o-%' "
        f"then substr({line}.client_reference, 3) else {line}.client_reference end"
    )


def named_entries(
    table: str, line: str, references: Sequence[str], *, of_any_type: str = "false"
) -> str:
    """Selects the entries in `table`, open_item or closed_item, that a line names by one of its
    columns `references`, or by our id: those of the type of the line, or all if `of_any_type` is
    true.

    Each key is one lookup in an index: with stale statistics the planner would rather read all
    entries of an account, once for each line.
    """
    keys = [
        f"i.external_reference <> '' and i.external_reference = {line}.{reference}"
        for reference in references
    ]
    keys.append(f"i.source_id = {our_id(line)}")
    parts = " union all ".join(
        f"(select t.* from ledger_item i cross join lateral (select * from {table} t where "
        f"{same_entry('t', 'i')} limit 1) t where {key} "
        f"and ({of_any_type} or i.line_type = {line}.line_type) offset 0)"
        for key in keys
    )
    return f"({parts} offset 0)"
