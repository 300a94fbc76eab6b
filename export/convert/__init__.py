"""Converters from a module to pt2, ONNX and TorchScript, and to reduced precision."""
