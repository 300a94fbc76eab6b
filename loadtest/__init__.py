"""Load-tests a running service and verifies its answers against a bundle's golden samples.

This package imports nothing from the other stages: it measures what any HTTP client would see, and
reads a bundle directly from its files.
"""
