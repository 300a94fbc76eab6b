"""Export: a module in, a proven bundle out.

Read ``build`` first: ``subject`` (what is exported: from ``sources`` or a ``factory``) goes through
``to_pt2``, ``to_onnx``, ``quantize`` and ``to_torchscript``, then through ``proof``, which runs all
of ``parity`` and whose figures ``parity.judge`` judges; ``bundle`` keeps what passed.

``bundle``, ``manifest``, ``golden``, ``session`` and ``parity``'s ``tolerances``, ``metrics``,
``figures`` and ``judge`` know no torch: they are what the service shares with this stage.
"""
