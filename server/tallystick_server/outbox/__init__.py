"""Events: stored in the transaction that makes a change, then relayed to EventService."""
