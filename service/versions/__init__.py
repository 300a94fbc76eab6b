"""The versions of a model on disk, and the decisions of their roll-outs: without models or HTTP."""
