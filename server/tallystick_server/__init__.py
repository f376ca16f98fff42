"""The services, each a room of its own, on one runtime."""
