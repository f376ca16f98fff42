"""The tables of MonitoringService."""
