"""Engines: run a bundle's model on a device, in batches formed from concurrent requests."""
