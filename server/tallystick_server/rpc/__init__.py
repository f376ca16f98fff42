"""gRPC: the server pipeline, errors, pagination, streaming, and clients of other services."""
