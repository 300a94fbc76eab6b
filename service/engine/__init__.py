"""Engines: run a bundle's model on a device, in batches of concurrent requests."""
