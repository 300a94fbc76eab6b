"""Sends requests and counts what comes of them: arrivals, bodies, judgement, counts."""
