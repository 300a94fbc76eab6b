"""Benchmarks of a bundle's variants."""
