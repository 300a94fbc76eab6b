"""Models: verify bundles on the device, serve them, and check them during operation."""
