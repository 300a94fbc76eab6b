"""The error that ends a run: ``ScoreError``. Rows that cannot be scored are quarantined instead."""


class ScoreError(Exception):
    """The run cannot start or go on; the message says what came, what was expected, what to do."""
