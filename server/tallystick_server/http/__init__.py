"""The HTTP server: JSON over the services' gRPC calls."""
