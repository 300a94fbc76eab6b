"""Export: a checkpoint in, a proven bundle out.

``bundle``, ``golden``, ``session`` and ``parity.tolerances``/``parity.metrics`` know no torch:
they are what the service shares with this stage. Everything else rebuilds and traces modules.
"""
