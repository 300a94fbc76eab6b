"""Samples the server's metrics and resource usage once a second during a run."""
