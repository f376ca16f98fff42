"""The services, the packages they share, and the process around them."""

import os

# read when gRPC is imported; what goes wrong is said by us
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
