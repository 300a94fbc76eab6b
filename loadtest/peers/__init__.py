"""Compares this service with other servers of the same model."""
