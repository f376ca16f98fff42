"""The services, the packages they share, and the process around them."""

import os

# read when gRPC is imported; our own code logs errors
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
