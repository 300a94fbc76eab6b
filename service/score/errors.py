"""What ends a run: ``ScoreError``. Rows that cannot be scored end none; they are quarantined."""


class ScoreError(Exception):
    """The run cannot start or go on; the message says what came, what was expected, what to do."""
