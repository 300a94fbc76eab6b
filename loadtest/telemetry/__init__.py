"""The server's side of a run: its counters and what it used, once a second."""
