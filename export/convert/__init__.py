"""Converters: from a module to pt2, ONNX, TorchScript, and to reduced precision."""
