"""EventService: numbers published events, and serves them in that order."""
