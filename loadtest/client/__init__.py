"""Clients that cost little, independent of locust: for comparing servers and for checking it."""
