"""Observability: Prometheus metrics, the log, and OpenTelemetry traces."""
