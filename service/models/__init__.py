"""Models: verifies bundles on the device, serves them, and checks them during operation."""
