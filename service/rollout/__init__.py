"""Replaces a model's version while it serves, judged by its proof; see ``docs/rollout.md``."""
