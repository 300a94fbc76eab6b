"""Replaces a model's version while the service runs, on evidence; see ``docs/rollout.md``."""
