"""Export: convert a module to a bundle of files whose outputs are proven to match it.

Read ``build`` first. The model under test comes from ``mnist.checkpoint`` or ``model.factory``.
``formats`` converts it with the modules of ``convert``; ``parity.run`` measures the files and
``parity.judge`` judges the figures. The files that pass are kept in the bundle.

``bundle``, ``parity.schema``, ``parity.judge`` and ``mnist.ood_detector`` do not import torch. The
service imports only ``bundle`` and ``mnist.ood_detector``.
"""
