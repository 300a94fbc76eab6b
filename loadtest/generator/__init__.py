"""Schedules and sends requests, verifies their answers, and counts the outcomes."""
