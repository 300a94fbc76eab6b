"""Adapters between requests and a model's tensors, one module for each task; see ``tensors``."""
