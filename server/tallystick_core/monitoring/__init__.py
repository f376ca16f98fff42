"""The history of metrics: how long samples are kept, and how they become points."""
