"""EventService: numbers what happened, and serves it in that order."""
