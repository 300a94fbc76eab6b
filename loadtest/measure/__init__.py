"""Load points and searches: figures, verdicts, and statistics over runs."""
