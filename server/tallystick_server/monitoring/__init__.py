"""MonitoringService: records the metrics of all processes, and returns them over time."""
