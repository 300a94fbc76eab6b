"""The error that ends a run: ``ScoreError``. Rows that cannot be scored are quarantined instead."""


class ScoreError(Exception):
    """The run cannot start or continue; says what came, what was expected and what to do."""
