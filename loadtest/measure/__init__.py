"""Measures load points and searches for the capacity: figures, verdicts, statistics over runs."""
